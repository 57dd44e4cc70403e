"""The full model: every layer at every scale. It gives no policy, and so is what all of them leave out.

`full_var:accounting=upstream` counts and stores as the official code does (keys in float32, the last scale kept);
every row takes the same parameter.
"""

from __future__ import annotations

from varbench import hookimpl
from varbench.policies import Provenance, Setting, Settings, TrainingSchedule, TrainStep
from varbench.spec import ModelSpec


class FullModelAlone(TrainingSchedule):
    """Goes on training the full model: the control for schedules that also train subnets."""

    def at(self, stage: object, step: int, total: int, uniform: object) -> TrainStep:
        return TrainStep()


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        recipes=("pretrained", "continued"),
        summary="the full model; `continued` trains it on, as the control of the methods that train",
        provenance=Provenance(kind="port", url="https://arxiv.org/abs/2404.02905"),
    )


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    return FullModelAlone() if setting.recipe == "continued" else None
