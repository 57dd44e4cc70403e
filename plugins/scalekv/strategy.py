"""How many entries a head holds after each scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.errors import UserError
from varbench.policies import CacheStrategy
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

GRID = 4
"""Side of the grid of observation queries."""
POOL = 5
"""Entries over which scores are max-pooled."""


def budgets(model: ModelSpec, *, percent: int, drafters: int, ratio: float) -> tuple[int, int]:
    """A drafter's and a refiner's entries: percent of all but the last scale's tokens on average, in the given ratio.

    Never fewer than the observers, which always stay.
    """
    if ratio < 1:
        raise UserError(f"ratio is {ratio}; a drafter holds at least as much as a refiner, so give 1 or more")
    if percent > 100:
        raise UserError(f"b{percent} is out of range: give b0 to b100, percent of what the full model holds")
    mean = model.starts[-2] * percent / 100
    refiner = mean * model.depth / (drafters * ratio + model.depth - drafters)
    small, large = (max(GRID * GRID, round(entries)) for entries in (refiner, refiner * ratio))
    return large, small


class ScaleKV(CacheStrategy):
    def __init__(self, model: ModelSpec, *, drafters: frozenset[int], budgets: tuple[int, int], base: int) -> None:
        self._model, self._drafters, self._base = model, drafters, base
        self._budgets = budgets

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        entries = self._budgets[0] if layer in self._drafters else self._budgets[1]
        return None if self._model.starts[scale + 1] <= max(entries, self._base) else entries

    def pick(
        self,
        keys_BHnc: Tensor,
        queries_BHLc: Tensor,
        count: int,
        *,
        attention_BHn: Tensor | None,
        layer: int,
        scale: int,
        group: int,
    ) -> Tensor:
        from .selection import best_entries, observers

        places_m = observers(queries_BHLc.shape[2], side=self._model.sides[scale], grid=GRID, device=keys_BHnc.device)
        return best_entries(keys_BHnc, queries_BHLc, count, observers_m=places_m, pool=POOL)
