"""A supernet that trains a subnet with a constant probability: what a schedule of that probability must beat."""

from __future__ import annotations

from varbench import hookimpl, supernet
from varbench.policies import DepthPolicy, Provenance, Published, Setting, Settings, TrainingSchedule
from varbench.spec import ModelSpec

PROBABILITIES = {"p01": 0.1, "p05": 0.5, "p10": 1.0}
PRINTED = {"p01": (1.96, 2.68), "p10": (2.32, 2.15)}
"""FID of the full depth and of the subnet, on var-d30."""


def published(model: ModelSpec) -> tuple[Published, ...]:
    """The subnet's figure stands beside every depth, since its own is not said."""
    found = []
    for recipe, (full, subnet) in PRINTED.items():
        for point in supernet.points(model):
            unsaid = "" if point == "full" else "of the subnet; how deep is not said"
            found.append(
                Published(
                    setting=f"@{recipe}/{point}", model="var-d30", figures={"fid": full if point == "full" else subnet},
                    grade="secondary", source="note on arXiv 2511.16546", conditions=unsaid,
                )
            )  # fmt: skip
    return tuple(found)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=supernet.points(model),
        default_points=supernet.default_points(model),
        point_pattern=supernet.POINT_PATTERN,
        recipes=tuple(PROBABILITIES),
        default_recipes=tuple(PROBABILITIES),
        parameters={**supernet.parameters(model), **supernet.TRAINING},
        published=published(model),
        summary="a supernet, a subnet trained in a fixed share of the steps",
        provenance=Provenance(
            kind="from paper", note="depths are drawn evenly", url="https://arxiv.org/abs/2511.16546"
        ),
    )


@hookimpl
def varbench_depth_policy(setting: Setting, model: ModelSpec) -> DepthPolicy:
    assert setting.point is not None
    return supernet.SupernetDepth(setting.point, model, setting.parameters)


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule:
    assert setting.recipe is not None
    constant = PROBABILITIES[setting.recipe]
    return supernet.SupernetSchedule(
        probability=lambda step, total: constant,
        subnets=supernet.points(model)[1:],
        parameters=setting.parameters,
    )
