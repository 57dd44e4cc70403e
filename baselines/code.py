"""A CoDe-style pair: a large drafter makes the coarse scales, a narrower refiner the fine ones (arXiv 2411.17787).

No keys pass between the two. At its first step the refiner re-embeds everything that was drafted, and encodes it
together with the scale that it samples, in one block-causal pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import (
    MAIN,
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

REFINER = "refiner"
DRAFTER_SHARE = 17.5 / 67.5
"""As published: the drafter is trained for 17.5 epochs, the refiner for 50."""
LARGER = ("var-d20", "var-d24", "var-d30")
PUBLISHED = (
    *(
        Published(
            setting=f"@{point}", model="var-d30", figures=figures, grade="primary", source="arXiv 2411.17787",
            conditions="one NVIDIA L20, batch 64, FP16, without the decoder; a sampler of its own", settings={"top_k": 600},
        )
        for point, figures in {
            "n9": {"fid": 1.94, "is": 296, "speedup": 1.2, "latency_s": 2.97, "memory_mb": 28803},
            "n8": {"fid": 1.98, "is": 302, "speedup": 1.7, "latency_s": 2.11, "memory_mb": 21019},
            "n7": {"fid": 2.11, "is": 303, "speedup": 2.3, "latency_s": 1.60, "memory_mb": 19943},
            "n6": {"fid": 2.27, "is": 297, "speedup": 2.9, "latency_s": 1.27, "memory_mb": 19943},
        }.items()
    ),
    *(
        Published(
            setting=f"@training_free/{point}", model="var-d30", figures={"fid": fid}, grade="primary",
            source="arXiv 2411.17787",
        )
        for point, fid in {"n9": 1.99, "n8": 2.10, "n7": 2.26, "n6": 2.42}.items()
    ),
    Published(
        setting="@n6", model="var-d30", figures={"kv_mb": 8156}, grade="secondary", source="note on arXiv 2511.16546",
        conditions="one NVIDIA L20, batch 64",
    ),
)  # fmt: skip


def refiner(model: ModelSpec) -> ModelSpec:
    """VAR-d16 for the larger official models, as published; for any other, one of half the width and heads."""
    return replace(model, name="var-d16", depth=16, width=1024, heads=16) if model.name in LARGER else model.narrower()


def points(model: ModelSpec) -> tuple[str, ...]:
    """`nN`: N scales are drafted. 6 to 9 of 10, as published; the same upper part of any other number, 3 to 5 of 6."""
    return tuple(f"n{count}" for count in range(max(1, model.scales * 6 // 10), model.scales))


def drafted(point: str, model: ModelSpec) -> int:
    count = int(point[1:])
    if not 1 <= count < model.scales:
        raise UserError(
            f"{point} is out of range: {model.name} has {model.scales} scales, so give n1 to n{model.scales - 1}"
        )
    return count


class DraftAndRefine(StepPolicy):
    def __init__(self, model: ModelSpec, count: int) -> None:
        self._model, self._count = model, count

    @property
    def backbones(self) -> Mapping[str, ModelSpec]:
        return {REFINER: refiner(self._model)}

    def steps(self) -> Sequence[StepSpec]:
        return (
            *(StepSpec(scales=(scale,)) for scale in range(self._count)),
            StepSpec(scales=tuple(range(self._count + 1)), backbone=REFINER),
            *(StepSpec(scales=(scale,), backbone=REFINER) for scale in range(self._count + 1, self._model.scales)),
        )


class PairSchedule(TrainingSchedule):
    """The drafter on its own scales; the refiner after the drafter, its weight moving to the scales that it refines."""

    DRAFTER = Stage(name="drafter", share=DRAFTER_SHARE)
    REFINER = Stage(name=REFINER, backbone=REFINER, share=1 - DRAFTER_SHARE, teacher=MAIN)

    def __init__(self, model: ModelSpec, count: int) -> None:
        self._coarse, self._fine = count, model.scales - count

    def stages(self) -> Sequence[Stage]:
        return (self.DRAFTER, self.REFINER)

    def check(self, total: int) -> None:
        if total < 4:
            raise UserError(f"{total} optimiser steps are too few for a drafter and a refiner; give at least 4")

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        if stage.name == self.DRAFTER.name:
            return TrainStep(scale_weights=(1.0,) * self._coarse + (0.0,) * self._fine)
        coarse_weight = 1 - step / max(1, total - 1)
        return TrainStep(loss="kl", scale_weights=(coarse_weight,) * self._coarse + (1.0,) * self._fine)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    names = points(model)
    return Settings(
        points=names,
        point_pattern=r"n[0-9]+",
        recipes=("trained", "training_free"),
        published=PUBLISHED,
        parameters={
            "trained_for": Parameter(
                default=names[len(names) // 2],
                help="the point that the pair is trained for; the others use its weights",
            )
        },
        summary="a large model drafts the coarse scales, a narrower one refines",
        provenance=Provenance(
            kind="from paper",
            note="the shared sampler; one pair is trained for all points",
            url="https://arxiv.org/abs/2411.17787",
        ),
    )


@hookimpl
def varbench_step_policy(setting: Setting, model: ModelSpec) -> StepPolicy:
    assert setting.point is not None
    return DraftAndRefine(model, drafted(setting.point, model))


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    if setting.recipe == "training_free":
        return None
    return PairSchedule(model, drafted(_trained_for(setting, model), model))


def _trained_for(setting: Setting, model: ModelSpec) -> str:
    point = str(setting.parameters["trained_for"])
    if point not in points(model):
        raise UserError(f"trained_for is {point!r}; give one of {', '.join(points(model))}")
    return point
