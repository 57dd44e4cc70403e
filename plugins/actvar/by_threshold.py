"""The same behind a gate, with as many experts for a token as are near its largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varbench.experts import Own
from varbench.experts.near_largest import near_the_largest
from varbench.spec import ModelSpec

from .gated import GatedExperts

if TYPE_CHECKING:
    from torch import Tensor


class GatedByThreshold(GatedExperts):
    varies = True

    def __init__(
        self,
        model: ModelSpec,
        *,
        experts: int,
        router: int,
        rank: int,
        threshold: float,
        dense: int,
        kept: Sequence[int | None],
    ) -> None:
        super().__init__(model, experts=experts, router=router, rank=rank, chosen=[experts] * model.scales, kept=kept)
        self._threshold, self._dense = threshold, dense

    def count(self, layer: int, scale: int) -> int | None:
        return self.experts if scale >= self._dense else None

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        return near_the_largest(hidden_RLC, own, layer=layer, threshold=self._threshold)
