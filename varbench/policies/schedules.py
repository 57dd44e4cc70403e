"""What a recipe trains, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from varbench.experts import Own, PlaceName, PlaceSeen

if TYPE_CHECKING:
    from torch import Tensor

from varbench.policies.within_loop import MAIN


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a recipe. Most recipes have one; a dual model has one for each backbone."""

    name: str
    backbone: str = MAIN
    share: float = 1.0
    """Share of the recipe's optimiser steps."""
    teacher: str | None = None
    """Backbone, as pretrained, that gives the soft targets of a `kl` loss, and what an `own` loss is `taught`."""
    trains: Literal["model", "own", "both"] = "model"
    """What is not frozen: the backbone's weights, or the numbers that the plugin keeps beside them."""
    parts: tuple[str, ...] = ()
    """Patterns of the names of those weights of the backbone that are trained, as `blocks.*.ffn.*`; empty is all of them."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """What one optimiser step trains."""

    point: str | None = None
    """A point of the plugin, whose plan runs; None runs the full model."""
    loss: Literal["ce", "kl", "own"] = "ce"
    """Cross-entropy, distance from the teacher, or the mean of the schedule's `own_loss` over all that it sees."""
    sees: tuple[PlaceName, ...] = ("ffn",)
    """Places that `own_loss` is asked about, in every layer that runs them."""
    scale_weights: tuple[float, ...] | None = None
    """Weight of each scale's tokens; a scale of weight 0 at the end is not run. None weighs all tokens alike. A loss of one's own
    weighs by itself."""


class TrainingSchedule(Protocol):
    """What is trained, for how long, on which plans."""

    def stages(self) -> Sequence[Stage]:
        return (Stage(name="train"),)

    def check(self, total: int) -> None:
        """Refuse, by a `UserError`, a number of steps that is too small for the schedule's phases."""
        return

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        """Step `step` of the stage's `total`; `uniform(k)` is the step's k-th random number in [0, 1)."""
        ...

    def own_loss(self, seen: PlaceSeen, *, own: Own) -> Tensor:
        """What a step of loss `own` minimises, of one place at work on the step's images: one number. Gradients reach the model
        and the plugin's own numbers as far as the stage trains them; of a frozen full model tensors alone are there."""
        needed = f"{type(self).__name__} names the loss 'own', so it must give own_loss() too"
        raise NotImplementedError(needed)
