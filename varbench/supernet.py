"""Supernets: one weight-shared network whose depth is chosen at run time. What methods of this kind share.

Points are `full` and `dN`, which runs N layers at the scales after the bridge. Training draws, for each step, the full
model or a subnet; how often is the method's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from varbench.errors import UserError
from varbench.policies import MAIN, DepthPolicy, Parameter, Stage, TrainingSchedule, TrainStep
from varbench.spec import ModelSpec

POINT_PATTERN = r"d[0-9]+"
DEPTHS = (16, 8, 4, 2)
DEFAULT_DEPTHS = (16, 8, 2)
"""What `run` measures unless told otherwise."""
TRAINING = {
    "draw": Parameter(
        default="uniform", help="depth that a subnet step trains: uniform over the points, or one, as in d8"
    ),
    "targets": Parameter(
        default="codes", help="what subnets learn: codes of the images, or what the full model says of them (full)"
    ),
}


def depths(model: ModelSpec) -> tuple[int, ...]:
    """Depths of the named points, deepest first."""
    return tuple(depth for depth in DEPTHS if depth < model.depth)


def points(model: ModelSpec) -> tuple[str, ...]:
    return ("full", *(f"d{depth}" for depth in depths(model)))


def default_points(model: ModelSpec) -> tuple[str, ...]:
    return ("full", *(f"d{depth}" for depth in depths(model) if depth in DEFAULT_DEPTHS))


def default_bridge(model: ModelSpec) -> int:
    """Scales that run whole: six of ten, and the same share, rounded down, of any other number (three of six)."""
    return model.scales * 6 // 10


def parameters(model: ModelSpec) -> dict[str, Parameter]:
    """Those of `SupernetDepth`; `TRAINING` are those of `SupernetSchedule`."""
    return {
        "bridge": Parameter(default=default_bridge(model), help="the first N scales run all layers"),
        "zone": Parameter(default="", help="scales that run fewer layers, in place of bridge, as in 7-10"),
        "spread": Parameter(
            default="equidistant", help="which layers a depth keeps: equidistant, or the first (prefix)"
        ),
        "nested": Parameter(default=False, help="take each smaller set of layers from within the larger"),
        "retain": Parameter(default="none", help="paper keeps the cache of layers that run no more; none drops it"),
    }


def equidistant(depth: int, layers: int) -> tuple[int, ...]:
    """`layers` layers of a network of `depth`, spread by floor(i (depth - 1) / (layers - 1))."""
    if layers == 1:
        return (0,)
    return tuple(i * (depth - 1) // (layers - 1) for i in range(layers))


def nested(depth: int, layers: int, larger: Sequence[int]) -> tuple[int, ...]:
    """The same number of layers, taken from within the next larger set of `larger`, as evenly as can be.

    As evenly as can be means the least sum of squared gaps; of equals, the one with the lower layers.
    """
    above = [n for n in larger if n > layers]
    if not above or layers == 1:
        return equidistant(depth, layers)
    first, *inner, last = nested(depth, min(above), larger)

    def unevenness(chosen: Sequence[int]) -> int:
        return sum((b - a) ** 2 for a, b in itertools.pairwise((first, *chosen, last)))

    return (first, *min(itertools.combinations(inner, layers - 2), key=unevenness), last)


def subnet(point: str, model: ModelSpec, *, is_nested: bool = False, spread: str = "equidistant") -> tuple[int, ...]:
    """Layers of a point, `full` or `dN` with 1 <= N < depth."""
    if point == "full":
        return tuple(range(model.depth))
    layers = int(point[1:])
    if not 1 <= layers < model.depth:
        raise UserError(
            f"{point} is out of range: {model.name} has {model.depth} layers, so give d1 to d{model.depth - 1}, or full"
        )
    if spread == "prefix":
        return tuple(range(layers))
    return nested(model.depth, layers, depths(model)) if is_nested else equidistant(model.depth, layers)


class SupernetDepth(DepthPolicy):
    """All layers at the bridge scales, the point's own at the others."""

    def __init__(self, point: str, model: ModelSpec, parameters: Mapping[str, bool | int | float | str]) -> None:
        self.full = tuple(range(model.depth))
        spread = one_of("spread", parameters, "equidistant", "prefix")
        self.subnet = subnet(point, model, is_nested=bool(parameters["nested"]), spread=spread)
        self.flexible = flexible_scales(model, bridge=int(parameters["bridge"]), zone=str(parameters["zone"]))
        retain = one_of("retain", parameters, "none", "paper")
        self._retained = frozenset(self.full) - frozenset(self.subnet) if retain == "paper" else frozenset()

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        if backbone != MAIN:
            raise UserError(
                f"the row also runs backbone {backbone!r}, and this depth is chosen for the main model alone"
            )
        return self.subnet if scale in self.flexible else self.full

    def retains(self, layer: int, scale: int) -> bool:
        return layer in self._retained


def one_of(name: str, parameters: Mapping[str, bool | int | float | str], *known: str) -> str:
    """The parameter's value, which is one of these words."""
    value = str(parameters[name])
    if value not in known:
        raise UserError(f"{name} is {value!r}; give {' or '.join(known)}")
    return value


def flexible_scales(model: ModelSpec, *, bridge: int, zone: str) -> frozenset[int]:
    """Scales, from 0, that run the reduced depth."""
    count = model.scales
    if zone:
        numbers = re.fullmatch(r"([0-9]+)-([0-9]+)", zone)
        first, last = (int(n) for n in numbers.groups()) if numbers else (0, 0)
        if not 1 <= first <= last <= count:
            raise UserError(f"zone is {zone!r}; give first-last within 1-{count}, the scales of {model.name}")
        return frozenset(range(first - 1, last))
    if not 0 <= bridge <= count:
        raise UserError(f"bridge is {bridge}; {model.name} has {count} scales, so give 0 to {count}")
    return frozenset(range(bridge, count))


class SupernetSchedule(TrainingSchedule):
    """`probability(step, total)` of training a subnet; which one is drawn evenly from `subnets`, or fixed by `draw`. With the
    targets `full`, subnets are taught by the full model as it was before."""

    def __init__(
        self,
        *,
        probability: Callable[[int, int], float],
        subnets: Sequence[str],
        parameters: Mapping[str, bool | int | float | str],
        shortest: int = 1,
    ) -> None:
        draw = str(parameters["draw"])
        if draw != "uniform" and draw not in subnets:
            raise UserError(f"draw is {draw!r}; give uniform, or one of {', '.join(subnets)}")
        self.probability = probability
        self.subnets = tuple(subnets) if draw == "uniform" else (draw,)
        self._shortest = shortest
        self._taught = one_of("targets", parameters, "codes", "full") == "full"

    def stages(self) -> Sequence[Stage]:
        return (Stage(name="train", teacher=MAIN if self._taught else None),)

    def check(self, total: int) -> None:
        if not self.subnets:
            raise UserError("the model is too shallow for any subnet, so there is nothing to train but itself")
        if total < self._shortest:
            raise UserError(
                f"{total} optimiser steps are too few for the schedule's phases; give at least {self._shortest}"
            )

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        if uniform(0) >= self.probability(step, total):
            return TrainStep()
        point = self.subnets[int(uniform(1) * len(self.subnets))]
        return TrainStep(point=point, loss="kl" if self._taught else "ce")
