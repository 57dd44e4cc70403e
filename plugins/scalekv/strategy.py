"""How many entries a head holds after each scale, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varbench.engine.calibration import read_masks
from varbench.policies import CacheStrategy
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

GRID = 4
"""Side of the grid of observation queries."""
POOL = 5
"""Entries over which scores are pooled."""
FORMS = ("code", "paper")

Drafters = tuple[frozenset[int], ...]
"""Layers, for each scale but the last."""


def mean_budget(model: ModelSpec, percent: int) -> float:
    """Percent of all but the last scale's tokens."""
    return model.starts[-2] * percent / 100


def budgets(model: ModelSpec, scale: int, *, mean: float, drafters: int, start: float, decay: float) -> tuple[int, int]:
    """A drafter's and a refiner's entries after a scale: `mean` on average over layers, as far as there are so many.

    Never fewer than the observers, which always stay.
    """
    there, refiners = model.starts[scale + 1], model.depth - drafters
    small = mean * (start - decay * scale) if drafters else mean
    small = max(small, min(mean, GRID * GRID))
    large = (model.depth * mean - refiners * small) / drafters if drafters else 0.0
    if large > there and refiners:
        small = (model.depth * mean - drafters * there) / refiners
    return max(GRID * GRID, round(min(large, there))), max(GRID * GRID, round(min(small, there)))


def read_drafters(text: str, model: ModelSpec) -> Drafters:
    """As calibration writes them, a mask for each scale; by default the first half of the layers at every scale."""
    if text:
        return read_masks(text, count=model.scales - 1, bits=model.depth, what="drafters")
    return (frozenset(range((model.depth + 1) // 2)),) * (model.scales - 1)


class ScaleKV(CacheStrategy):
    capturable = True

    def __init__(
        self,
        model: ModelSpec,
        *,
        drafters: Drafters,
        mean: float,
        start: float = 1.0,
        decay: float = 0.0,
        form: str = "code",
        base: int = 0,
    ) -> None:
        self._model, self._drafters, self._base, self._by_attention = model, drafters, base, form == "paper"
        self._budgets = [
            budgets(model, scale, mean=mean, drafters=len(layers), start=start, decay=decay)
            for scale, layers in enumerate(drafters)
        ]

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        if scale == self._model.scales - 1:
            return None
        entries = self._budgets[scale][0 if layer in self._drafters[scale] else 1]
        return None if self._model.starts[scale + 1] <= max(entries, self._base) else entries

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return observers(count, side=self._model.sides[scale], grid=GRID) if self._by_attention else None

    def pick(
        self,
        keys_BHnc: Tensor,
        queries_BHLc: Tensor,
        count: int,
        *,
        attention_BHn: Tensor | None,
        scale: int,
        **where: Any,
    ) -> Tensor:
        from .selection import best_entries, on, products

        own = queries_BHLc.shape[2]
        places = observers(own, side=self._model.sides[scale], grid=GRID)
        scores_BHn = (
            products(keys_BHnc, queries_BHLc.index_select(2, on(tuple(places), keys_BHnc.device)))
            if attention_BHn is None
            else attention_BHn
        )
        always = [place + keys_BHnc.shape[2] - own for place in places]
        return best_entries(scores_BHn, count, always=always, pool=POOL, average=attention_BHn is not None)


def observers(count: int, *, side: int, grid: int) -> list[int]:
    """Which of a scale's `count` computed tokens observe: the middles of a grid's cells, ascending.

    Our choice where no grid can be laid: a map smaller than the grid observes with every token, and where tokens were
    pruned, grid * grid of those left, evenly spread in their order.
    """
    if count == side * side and side >= grid:
        cell = side // grid
        line = [number * cell + (cell - 1) // 2 for number in range(grid)]
        return [row * side + column for row in line for column in line]
    wanted = min(count, grid * grid)
    return [number * count // wanted for number in range(wanted)]
