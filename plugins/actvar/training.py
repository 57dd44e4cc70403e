"""How it is trained. Apart from what is told of the method, since weights are found by the text of what trains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from varbench.experts import FfnSeen, Own
from varbench.policies import MAIN, Stage, TrainingSchedule, TrainStep

from .gated import frozen_loss

if TYPE_CHECKING:
    from torch import Tensor


class TwoStages(TrainingSchedule):
    """Routers, gates and maps on the frozen model, then everything on its logits."""

    def __init__(self, points: Sequence[str], *, frozen_only: bool) -> None:
        self._points, self._frozen_only = tuple(points), frozen_only

    def stages(self) -> tuple[Stage, ...]:
        if self._frozen_only:
            return (Stage(name="frozen", trains="own"),)
        return (
            Stage(name="frozen", share=0.5, trains="own"),
            Stage(name="distilled", share=0.5, teacher=MAIN, trains="both"),
        )

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        if stage.name == "frozen":
            return TrainStep(loss="own")
        return TrainStep(point=self._points[int(uniform(0) * len(self._points))], loss="kl")

    def own_loss(self, seen: FfnSeen, *, own: Own) -> Tensor:
        return frozen_loss(seen, own)
