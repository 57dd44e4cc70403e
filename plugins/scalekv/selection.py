"""The choice of cache entries, on tensors.

Letters: B rows, H heads, n entries (those held, then the scale's own), L the scale's own, m observers, c head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def observers(count: int, *, side: int, grid: int, device: torch.device | str = "cpu") -> Tensor:
    """Which of a scale's `count` computed tokens observe: the middles of a grid's cells, ascending.

    Our choice where no grid can be laid: a map smaller than the grid observes with every token, and where tokens were
    pruned, grid * grid of those left, evenly spread in their order.
    """
    if count == side * side and side >= grid:
        cell = side // grid
        line = torch.arange(grid, device=device) * cell + (cell - 1) // 2
        return (line[:, None] * side + line).flatten()
    wanted = min(count, grid * grid)
    return torch.arange(wanted, device=device) * count // wanted


def best_entries(keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, *, observers_m: Tensor, pool: int) -> Tensor:
    """Places (B, H, count), ascending: the observers' own entries, and those with the largest pooled scores.

    An entry's score is the sum of its products with the observers' queries; the observers' own entries are masked
    before pooling, so that they do not lift their neighbours.
    """
    rows, heads, entries, _ = keys_BHnc.shape
    if count >= entries:
        return torch.arange(entries, device=keys_BHnc.device).expand(rows, heads, -1)
    if count < len(observers_m):
        raise ValueError(
            f"{count} entries are to stay, and the {len(observers_m)} observers always do; give a larger budget"
        )
    own_m = observers_m + entries - queries_BHLc.shape[2]
    watching_BHc = queries_BHLc[:, :, observers_m].float().sum(dim=2)
    scores_BHn = (keys_BHnc.float() @ watching_BHc.unsqueeze(-1)).squeeze(-1)
    scores_BHn[:, :, own_m] = -torch.inf
    pooled_BHn = F.max_pool1d(scores_BHn, pool, stride=1, padding=pool // 2)
    pooled_BHn[:, :, own_m] = -torch.inf
    # Pooling makes ties; a stable sort gives them to the earlier entry on any device.
    best = pooled_BHn.sort(dim=-1, descending=True, stable=True).indices[:, :, : count - len(own_m)]
    return torch.cat((best, own_m.expand(rows, heads, -1)), dim=-1).sort(dim=-1).values
