"""Smaller models: what any way of making a large one cheaper must beat.

Each recipe is a model of its own. `d24`, `d20` and `d16` are the official ones beside a larger; where there are none, `narrow`
is of half the width and heads. `alone_dN` are the layers of a supernet's point `dN`, trained by themselves for as many steps
as the supernet is: the main model's weights, and no other depth to share them with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from varbench import hookimpl, supernet
from varbench.policies import (
    DepthPolicy,
    Parameter,
    Provenance,
    Published,
    Setting,
    Settings,
    Stage,
    StepPolicy,
    StepSpec,
    TrainingSchedule,
    TrainStep,
)
from varbench.spec import ModelSpec

OFFICIAL = ("var-d30", "var-d24", "var-d20", "var-d16")
NARROW, ALONE, WHOLE = "narrow", "alone_", "whole"
PUBLISHED = tuple(
    Published(
        setting=f"@{name}", model="var-d30", figures=figures, grade="primary", source="arXiv 2411.17787",
        conditions="one NVIDIA L20, batch 64, FP16, without the decoder; speedup over var-d30",
    )
    for name, figures in {
        "d24": {"fid": 2.11, "is": 311, "speedup": 1.7, "latency_s": 2.07, "memory_mb": 25093},
        "d20": {"fid": 2.61, "is": 301, "speedup": 2.8, "latency_s": 1.29, "memory_mb": 17814},
    }.items()
)  # fmt: skip


def others(model: ModelSpec) -> Mapping[str, ModelSpec]:
    """Models with weights of their own, by recipe, the largest first."""
    smaller = OFFICIAL[OFFICIAL.index(model.name) + 1 :] if model.name in OFFICIAL else ()
    depths = {name.removeprefix("var-"): int(name.removeprefix("var-d")) for name in smaller}
    found = {
        name: replace(model, name=f"var-{name}", depth=depth, width=64 * depth, heads=depth)
        for name, depth in depths.items()
    }
    return found or ({} if model.heads % 2 else {NARROW: model.narrower()})


def alone(model: ModelSpec) -> Mapping[str, str]:
    """Points of a supernet that are trained by themselves, by recipe."""
    return {ALONE + point: point for point in supernet.points(model)[1:]}


class OnAnother(StepPolicy):
    """Every scale on the smaller model; the main one is not run."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        self._name, self._spec = name, spec

    @property
    def backbones(self) -> Mapping[str, ModelSpec]:
        return {self._name: self._spec}

    def steps(self) -> Sequence[StepSpec]:
        return tuple(StepSpec(scales=(scale,), backbone=self._name) for scale in range(self._spec.scales))


class Alone(TrainingSchedule):
    """Every step trains the row's own layers."""

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        return TrainStep(point=WHOLE)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    known, trained = others(model), alone(model)
    shown = set(supernet.default_points(model)) if NARROW in known else set()
    return Settings(
        points=(WHOLE,),
        recipes=(*known, *trained),
        default_recipes=(*known, *(recipe for recipe, point in trained.items() if point in shown)),
        parameters={
            "bridge": Parameter(
                default=supernet.default_bridge(model),
                help="alone_dN: the first N scales run all layers, as in a supernet; 0 is N layers at every scale",
            )
        },
        published=PUBLISHED,
        summary="a smaller model, or a supernet's layers trained by themselves",
        provenance=Provenance(
            kind="ours",
            note="weights of official models by --companion d24=FILE; alone_dN takes its scales and layers from the "
            "supernet's point dN, and starts from the main model's weights as that does",
        ),
    )


@hookimpl
def varbench_step_policy(setting: Setting, model: ModelSpec) -> StepPolicy | None:
    spec = others(model).get(setting.recipe or "")
    return None if spec is None else OnAnother(str(setting.recipe), spec)


@hookimpl
def varbench_depth_policy(setting: Setting, model: ModelSpec) -> DepthPolicy | None:
    point = alone(model).get(setting.recipe or "")
    if point is None:
        return None
    defaults = {name: parameter.default for name, parameter in supernet.parameters(model).items()}
    return supernet.SupernetDepth(point, model, {**defaults, **setting.parameters})


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    return Alone() if setting.recipe in alone(model) else None
