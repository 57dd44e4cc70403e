"""Experts whose expected norm is near a token's largest: the choice of DMoE-VAR (arXiv 2510.08629), whose number hangs on content.

Letters as in `varbench.experts.routers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.experts import Own
from varbench.experts.routers import predicted_norms

if TYPE_CHECKING:
    from torch import Tensor


def near_the_largest(hidden_RLC: Tensor, own: Own, *, layer: int, threshold: float) -> Tensor:
    """Numbers (R, L, E) of those whose norm is at least (1 - threshold) times the token's largest; -1 in the others' places."""
    import torch

    norms_RLE = predicted_norms(hidden_RLC, own["down"][layer], own["up"][layer])
    near_RLE = norms_RLE >= (1 - threshold) * norms_RLE.amax(dim=-1, keepdim=True)
    return torch.where(near_RLE, torch.arange(norms_RLE.shape[-1], device=near_RLE.device), -1)
