"""The choice of cache entries, on tensors.

Letters: B rows, H heads, n entries (those held, then the scale's own), m observers, c head size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def on(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Brought once: what comes from the host cannot be captured."""
    return torch.tensor(places, device=device)


def products(keys_BHnc: Tensor, watching_BHmc: Tensor) -> Tensor:
    """Scores (B, H, n): each entry's products with the observers' queries, added up."""
    return (keys_BHnc.float() @ watching_BHmc.float().sum(dim=2).unsqueeze(-1)).squeeze(-1)


def best_entries(scores_BHn: Tensor, count: int, *, always: Sequence[int], pool: int, average: bool = False) -> Tensor:
    """Places (B, H, count), ascending: the entries that always stay, and those with the largest pooled scores.

    Scores of those that always stay are masked before pooling, so that they do not lift their neighbours.
    """
    rows, heads, entries = scores_BHn.shape
    if count >= entries:
        return torch.arange(entries, device=scores_BHn.device).expand(rows, heads, -1)
    if count < len(always):
        raise ValueError(
            f"{count} entries are to stay, and the {len(always)} observers always do; give a larger budget"
        )
    own_m = on(tuple(always), scores_BHn.device)
    masked_BHn = scores_BHn.index_fill(2, own_m, 0.0 if average else -torch.inf)
    pooling = F.avg_pool1d if average else F.max_pool1d
    pooled_BHn = pooling(masked_BHn, pool, stride=1, padding=pool // 2).index_fill(2, own_m, -torch.inf)
    # Pooling makes ties; a stable sort gives them to the earlier entry on any device.
    best = pooled_BHn.sort(dim=-1, descending=True, stable=True).indices[:, :, : count - len(own_m)]
    return torch.cat((best, own_m.expand(rows, heads, -1)), dim=-1).sort(dim=-1).values
