"""The choice of tokens and the restoration of the others, on tensors.

Letters: B rows (the two halves of guidance choose for themselves), L tokens of the scale, n computed ones, l tokens of
the remembered scale, C width.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def farthest_from_mean(x_BLC: Tensor, count: int) -> Tensor:
    """Places (B, count), ascending, of the tokens with the largest squared distance from the mean token."""
    scores_BL = (x_BLC - x_BLC.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return scores_BL.topk(count, dim=1).indices.sort(dim=1).values


def restored(computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, side: int) -> Tensor:
    """All tokens (B, L, C): computed ones in their places, elsewhere the remembered map resized by area (or nothing)."""
    batch, _, width = computed_BnC.shape
    if remembered_BlC is None:
        map_BLC = computed_BnC.new_zeros(batch, side * side, width)
    else:
        small = math.isqrt(remembered_BlC.shape[1])
        map_BChw = remembered_BlC.transpose(1, 2).reshape(batch, width, small, small)
        map_BLC = F.interpolate(map_BChw, size=(side, side), mode="area").flatten(2).transpose(1, 2)
    return map_BLC.to(computed_BnC.dtype).scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)
