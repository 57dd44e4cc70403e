"""How routers are trained. Apart from what is told of the method, since weights are found by the text of what trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from varbench.experts import FfnSeen, Own
from varbench.experts.routers import router_loss
from varbench.policies import Stage, TrainingSchedule, TrainStep

if TYPE_CHECKING:
    from torch import Tensor


class RouterSchedule(TrainingSchedule):
    """The routers alone, on norms that the frozen model shows."""

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(name="routers", trains="own"),)

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        return TrainStep(loss="own")

    def own_loss(self, seen: FfnSeen, *, own: Own) -> Tensor:
        return router_loss(seen, own)
