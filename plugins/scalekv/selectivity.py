"""How selective a layer's attention is at a scale. Letters: B rows, H heads, n entries, L the scale's own, c head size.

The index is the share of attention that queries pay to their own scale, times what they pay to the entries of the history
that they look at most. Who is selective is a refiner and needs few entries; who looks widely is a drafter.

It is no cure-all: how widely a layer looks says nothing of how much what it loses is worth. Errors of early layers go
through all that follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varbench.engine.calibration import observe, written_masks
from varbench.errors import UserError

if TYPE_CHECKING:
    from varbench import Pipeline

IMAGES, SEED = 10, 20_252
FIRST = 2
"""The first scale has no history, the second one entry."""


def selectivity(keys_BHnc: Tensor, queries_BHLc: Tensor, softmax_scale: float, *, top: int) -> float:
    """Mean share paid to the own scale, times the mean sum of the `top` largest shares paid to entries before it."""
    scores_BHLn = queries_BHLc.float() @ keys_BHnc.float().transpose(2, 3) * softmax_scale
    shares_BHLn = scores_BHLn.softmax(dim=-1)
    history = shares_BHLn.shape[-1] - queries_BHLc.shape[2]
    largest = shares_BHLn[..., :history].topk(min(top, history), dim=-1).values.sum(dim=-1).mean()
    return float(shares_BHLn[..., history:].sum(dim=-1).mean() * largest)


def lowest(index_sl: Tensor, *, share: float) -> list[tuple[int, int]]:
    """(scale, layer) of the share of all with the lowest index, once it is told in deviations from its scale's mean."""
    deviation = index_sl.std(dim=1, keepdim=True, correction=0).clamp_min(1e-12)
    scores = ((index_sl - index_sl.mean(dim=1, keepdim=True)) / deviation).flatten()
    order = scores.sort(stable=True).indices.tolist()[: round(share * scores.numel())]
    return [divmod(place, index_sl.shape[1]) for place in order]


def least_selective(pipe: Pipeline, *, share: float, top: int) -> dict[str, Any]:
    """Drafters by scale and layer. The last scale's entries are never stored."""
    model = pipe.model
    if not 0 < share < 1 or top < 1:
        raise UserError(f"share is {share} and top is {top}; give a share of all between 0 and 1, and 1 or more")
    index = torch.zeros(model.scales - 1 - FIRST, model.depth)

    def look(layer: int, scale: int, keys_BHnc: Tensor, queries_BHLc: Tensor) -> None:
        if FIRST <= scale < model.scales - 1:
            attention: Any = pipe.backbones["main"].blocks[layer].attn
            index[scale - FIRST, layer] = selectivity(keys_BHnc, queries_BHLc, attention.softmax_scale, top=top)

    labels = [image * model.classes // IMAGES for image in range(IMAGES)]
    observe(pipe, labels, seed=SEED, look=look)
    low = lowest(index, share=share)
    drafters = ([layer for at, layer in low if at == scale - FIRST] for scale in range(model.scales - 1))
    return {
        "parameters": {"drafters": written_masks(drafters)},
        "selectivity": [[round(value, 6) for value in layers] for layers in index.tolist()],
        "measure": (
            "share of attention paid to the own scale, times the largest shares paid to the history; means over heads and "
            "tokens; by scale from the third on, then by layer"
        ),
        "images": IMAGES,
        "seed": SEED,
    }
