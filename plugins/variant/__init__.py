"""VARiant: one weight-shared network whose depth is chosen at run time, trained progressively (arXiv 2511.16546)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varbench import hookimpl, supernet
from varbench.policies import DepthPolicy, Parameter, Provenance, Setting, Settings, TrainingSchedule
from varbench.spec import ModelSpec

from . import story

if TYPE_CHECKING:
    from varbench.record import Record
    from varbench.record.sections import Section

SHORTEST_TRAINING = 6
"""Steps from which each of the three phases has one."""
PHASES = {"phases": Parameter(default="published", help="full model first and subnets last (published), or reversed")}


def probability(step: int, total: int) -> float:
    """That a step trains a subnet: 0.2 for a sixth of the steps, then linearly up over half of them, then 1."""
    if 6 * step < total:
        return 0.2
    if 3 * step < 2 * total:
        return 0.2 + 0.8 * ((6 * step - total) / (3 * total))
    return 1.0


def backwards(step: int, total: int) -> float:
    """The same share of subnets in all, the most of them first."""
    return probability(total - 1 - step, total)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=supernet.points(model),
        default_points=supernet.default_points(model),
        point_pattern=supernet.POINT_PATTERN,
        recipes=("progressive", "untrained"),
        parameters={**supernet.parameters(model), **supernet.TRAINING, **PHASES},
        studies={"scale_depth_asymmetry": story.where_depth_matters(model), "ablations": story.choices(model)},
        published=story.PUBLISHED,
        paper=story.PAPER,
        summary="one weight-shared network, depth chosen at run time",
        provenance=Provenance(
            kind="from paper",
            note="phases are 1/6, 1/2 and 1/3 of the steps; depths are drawn evenly; the bridge is 6/10 of the scales, as in "
            "the text, though the published 3.5x of d2 fits bridge=7 (3.6x less work) better than 6 (5.2x)",
            url="https://arxiv.org/abs/2511.16546",
        ),
    )


@hookimpl
def varbench_depth_policy(setting: Setting, model: ModelSpec) -> DepthPolicy:
    assert setting.point is not None
    return supernet.SupernetDepth(setting.point, model, setting.parameters)


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    if setting.recipe == "untrained":
        return None
    phases = supernet.one_of("phases", setting.parameters, "published", "reversed")
    return supernet.SupernetSchedule(
        probability=probability if phases == "published" else backwards,
        subnets=supernet.points(model)[1:],
        parameters=setting.parameters,
        shortest=SHORTEST_TRAINING,
    )


@hookimpl
def varbench_report_sections(plugin: str, records: Sequence[Record]) -> Sequence[Section]:
    from . import ablations, claims  # draw on numpy, which `list` must not

    return [*claims.sections(plugin, records), *ablations.sections(plugin, records)]
