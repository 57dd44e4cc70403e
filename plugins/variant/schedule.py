"""Training of a supernet: at each step, with some probability, a subnet, and else the full model.

Public: `fixed_ratio` differs in the probability alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from varbench.errors import UserError
from varbench.policies import Parameter, Stage, TrainingSchedule, TrainStep

DRAW = {
    "draw": Parameter(
        default="uniform", help="depth that a subnet step trains: uniform over the points, or one, as in d8"
    )
}


class SupernetSchedule(TrainingSchedule):
    """`probability(step, total)` of training a subnet; which one is drawn evenly from `subnets`, or fixed by `draw`."""

    def __init__(
        self,
        *,
        probability: Callable[[int, int], float],
        subnets: Sequence[str],
        draw: str = "uniform",
        shortest: int = 1,
    ) -> None:
        if draw != "uniform" and draw not in subnets:
            raise UserError(f"draw is {draw!r}; give uniform, or one of {', '.join(subnets)}")
        self.probability = probability
        self.subnets = tuple(subnets) if draw == "uniform" else (draw,)
        self._shortest = shortest

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
        return TrainStep(point=self.subnets[int(uniform(1) * len(self.subnets))])
