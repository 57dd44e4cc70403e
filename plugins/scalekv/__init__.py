"""ScaleKV: each head keeps its best cache entries, drafter layers many and refiner layers few (arXiv 2505.19602).

Points: `bN` keeps N percent of the entries that the full model holds while the last scale runs, on average over layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.engine.calibration import read_layers, written_layers
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Setting, Settings
from varbench.spec import ModelSpec

from .strategy import ScaleKV, budgets

if TYPE_CHECKING:
    from varbench import Pipeline


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=("b75", "b50", "b25", "b10"),
        default_points=("b50", "b25", "b10"),
        point_pattern=r"b[0-9]{1,3}",
        parameters={
            "drafters": Parameter(
                default=written_layers(range((model.depth + 1) // 2)),
                help="layers with the large budget, as in 0.3.7; calibration finds them",
            ),
            "ratio": Parameter(default=3.0, help="a drafter's budget over a refiner's"),
            "base": Parameter(default=0, help="nothing is dropped while a head holds N entries or fewer"),
        },
        neutral=("@b100:ratio=1", f"@b0:base={model.length}"),
        summary="each head keeps its best entries; drafter layers many, refiner layers few",
        provenance=Provenance(
            kind="port",
            note=(
                "the choice of entries agrees with the authors' code; they score with queries before bias and "
                "normalisation, here they are the queries that attention used; their budgets for VAR at 256 px are not "
                "published, so budgets, their ratio and one budget for all scales are ours; so is the first half of the "
                "layers as drafters where calibration has not been run, and calibration's measure; on tiny that half is the "
                "better choice"
            ),
            url="https://arxiv.org/abs/2505.19602",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    base, percent = int(setting.parameters["base"]), int(setting.point[1:])
    if base < 0:
        raise UserError(f"base is {base}; give the entries that a head may hold before any is dropped, 0 or more")
    drafters = frozenset(read_layers(str(setting.parameters["drafters"]), model, what="drafters"))
    return ScaleKV(
        model,
        drafters=drafters,
        budgets=budgets(model, percent=percent, drafters=len(drafters), ratio=float(setting.parameters["ratio"])),
        base=base,
    )


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .selectivity import least_selective

    return least_selective(pipe)
