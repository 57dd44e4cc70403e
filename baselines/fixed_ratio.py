"""The same supernet as `variant`, trained with a constant probability of a subnet: what progressive training must beat."""

from __future__ import annotations

from varbench import hookimpl
from varbench.policies import DepthPolicy, Provenance, Setting, Settings, TrainingSchedule
from varbench.spec import ModelSpec
from varbench_plugins.variant import depth
from varbench_plugins.variant.schedule import DRAW, SupernetSchedule

PROBABILITIES = {"p01": 0.1, "p05": 0.5, "p10": 1.0}


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=depth.points(model),
        default_points=depth.default_points(model),
        point_pattern=depth.POINT_PATTERN,
        recipes=tuple(PROBABILITIES),
        default_recipes=tuple(PROBABILITIES),
        parameters={**depth.parameters(model), **DRAW},
        summary="the supernet of variant, a subnet trained in a fixed share of the steps",
        provenance=Provenance(
            kind="from paper", note="depths are drawn evenly", url="https://arxiv.org/abs/2511.16546"
        ),
    )


@hookimpl
def varbench_depth_policy(setting: Setting, model: ModelSpec) -> DepthPolicy:
    assert setting.point is not None
    return depth.SupernetDepth(setting.point, model, setting.parameters)


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule:
    assert setting.recipe is not None
    constant = PROBABILITIES[setting.recipe]
    return SupernetSchedule(
        probability=lambda step, total: constant,
        subnets=depth.points(model)[1:],
        draw=str(setting.parameters["draw"]),
    )
