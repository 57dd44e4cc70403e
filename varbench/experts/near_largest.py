"""Experts whose expected norm is near a token's largest: the choice of DMoE-VAR (arXiv 2510.08629), whose number hangs on content.

Letters as in `varbench.experts.routers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varbench.experts import Own
from varbench.experts.routers import RoutedExperts, predicted_norms
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class NearTheLargest(RoutedExperts):
    """From scale `dense` on those whose predicted norm is at least (1 - threshold) times the token's largest; `thresholds` are those of
    the scales from there on. What else derives from routed experts chooses so too, with this class before it."""

    varies = True

    def __init__(
        self, model: ModelSpec, *, experts: int, thresholds: Sequence[float], dense: int, **further: Any
    ) -> None:
        super().__init__(model, experts=experts, chosen=[experts] * model.scales, **further)
        self._thresholds, self._dense = tuple(thresholds), dense

    def count(self, layer: int, scale: int) -> int | None:
        return self.experts if scale >= self._dense else None

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        import torch

        norms_RLE = predicted_norms(hidden_RLC, own["down"][layer], own["up"][layer])
        near_RLE = norms_RLE >= (1 - self._thresholds[scale - self._dense]) * norms_RLE.amax(dim=-1, keepdim=True)
        return torch.where(near_RLE, torch.arange(count, device=near_RLE.device), -1)
