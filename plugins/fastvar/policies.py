"""Which scales and layers are pruned, by how much, and which scale restores them; which scales are left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varbench.errors import UserError
from varbench.policies import Setting, StepPolicy, StepSpec, SubLayerName, TokenPolicy
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

POINT_PATTERN = r"r[0-9]{1,2}(skip[1-9])?|skip[1-9]"
INFINITY_LAYERS, INFINITY_FIRST, INFINITY_LAST = 32, 3, 4
"""In the authors' Infinity, layers 3 to 27 of 32 are pruned; in their HART, all."""


@dataclass(frozen=True)
class Point:
    percent: int | None
    """Pruned at the last scale that runs; None where the point only skips."""
    skipped: int


def read_point(setting: Setting, model: ModelSpec) -> Point:
    assert setting.point is not None
    numbers = re.fullmatch(r"(?:r([0-9]+))?(?:skip([0-9]+))?", setting.point)
    assert numbers is not None
    percent, skipped = numbers.groups()
    if int(skipped or 0) >= model.scales:
        raise UserError(
            f"{setting.point} leaves no scale: {model.name} has {model.scales}, so skip 1 to {model.scales - 1}"
        )
    return Point(percent=int(percent) if percent else None, skipped=int(skipped or 0))


def whole_layers(model: ModelSpec) -> tuple[int, int]:
    """First and last layers that compute every token, rounded to the proportion of the authors' Infinity."""
    first, last = ((model.depth * n + INFINITY_LAYERS // 2) // INFINITY_LAYERS for n in (INFINITY_FIRST, INFINITY_LAST))
    return first, last


def pruned_layers(model: ModelSpec, parameters: Mapping[str, bool | int | float | str]) -> range:
    first, last = int(parameters["first"]), int(parameters["last"])
    if first < 0 or last < 0 or first + last > model.depth:
        raise UserError(
            f"first is {first} and last is {last}; {model.name} has {model.depth} layers, so give two numbers from 0 "
            f"that add up to {model.depth} at most"
        )
    return range(first, model.depth - last)


def pruned_scales(point: Point, model: ModelSpec, *, scales: int) -> dict[int, int]:
    """Percent pruned at each pruned scale: rising evenly to the point's own at the last scale that runs."""
    assert point.percent is not None
    running = model.scales - point.skipped
    if not 0 <= scales < running:
        raise UserError(
            f"scales is {scales}; {running} of {model.name}'s {model.scales} scales run, and one must be left to restore "
            f"from, so give 0 to {running - 1}"
        )
    return {running - scales + n: point.percent * (n + 2) // (scales + 1) for n in range(scales)}


def computed_tokens(length: int, percent: int) -> int:
    """What is left of a scale's tokens; at least one, as the ratio stays below 100 percent."""
    return length - length * percent // 100


class PivotalTokens(TokenPolicy):
    """Each sub-layer of the pruned layers computes the tokens farthest from the mean, or the FFN those of attention; one earlier
    scale gives the rest."""

    capturable = True

    def __init__(self, model: ModelSpec, *, percents: Mapping[int, int], layers: range, share: bool = False) -> None:
        self._model, self._percents, self._layers, self._share = model, dict(percents), layers, share
        self._remembered = min(percents) - 1 if percents else None

    def tokens(self, layer: int, scale: int, sublayer: SubLayerName) -> int | None:
        if layer not in self._layers or scale not in self._percents:
            return None
        return computed_tokens(self._model.tokens[scale], self._percents[scale])

    def shares_places(self, layer: int, scale: int) -> bool:
        return self._share

    def remembers(self, layer: int, scale: int, sublayer: SubLayerName) -> bool:
        return scale == self._remembered and layer in self._layers

    def pick(self, x_BLC: Tensor, count: int, *, layer: int, scale: int, sublayer: SubLayerName) -> Tensor:
        from .selection import farthest_from_mean

        return farthest_from_mean(x_BLC, count)

    def fill(
        self,
        computed_BnC: Tensor,
        places_Bn: Tensor,
        remembered_BlC: Tensor | None,
        *,
        length: int,
        layer: int,
        scale: int,
        sublayer: SubLayerName,
    ) -> Tensor:
        from .selection import restored

        return restored(computed_BnC, places_Bn, remembered_BlC, side=self._model.sides[scale])


class WithoutLargest(StepPolicy):
    def __init__(self, scales: int) -> None:
        self._scales = scales

    def steps(self) -> Sequence[StepSpec]:
        return tuple(StepSpec(scales=(scale,)) for scale in range(self._scales))
