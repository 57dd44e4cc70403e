"""ScaleKV: each head keeps its best cache entries, in drafter layers many and in refiner layers few (arXiv 2505.19602).

Points: `bN` keeps N percent of the entries that the full model holds while the last scale runs, on average over layers.
A layer may be a drafter at one scale and a refiner at another; calibration finds out by attention selectivity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Setting, Settings
from varbench.spec import ModelSpec

from .strategy import FORMS, GRID, ScaleKV, mean_budget, read_drafters

if TYPE_CHECKING:
    from varbench import Pipeline


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    points = ("b75", "b50", "b25", "b10")
    small = [f"{point} ({mean_budget(model, int(point[1:])):.0f})" for point in points]
    small = [
        words for words, point in zip(small, points, strict=True) if mean_budget(model, int(point[1:])) < 2 * GRID**2
    ]
    few = (
        f"; on {model.name} {', '.join(small)} are less than twice the {GRID**2} observers, which always stay"
        if small
        else ""
    )
    return Settings(
        points=points,
        default_points=("b50", "b25", "b10"),
        point_pattern=r"b[0-9]{1,3}",
        parameters={
            "drafters": Parameter(
                default="",
                help="for each scale but the last a hexadecimal mask of its drafter layers; calibration finds them",
                calibrated=True,
            ),
            "share": Parameter(default=0.5, help="share of all layers at all scales that calibration calls drafters"),
            "top": Parameter(default=16, help="largest attentions to the history that calibration sums up"),
            "start": Parameter(default=0.92, help="a refiner's budget at the first scale, over the mean one"),
            "decay": Parameter(default=0.1, help="what it loses at each scale, over the mean one"),
            "form": Parameter(
                default="code", help="entries are scored as the authors' code does, or as their paper says"
            ),
            "base": Parameter(default=0, help="nothing is dropped while a head holds N entries or fewer"),
        },
        neutral=("@b100:start=1:decay=0", f"@b0:base={model.length}"),
        summary="each head keeps its best entries; drafter layers many, refiner layers few",
        provenance=Provenance(
            kind="port",
            note=(
                "the choice of entries agrees with the authors' code, and with form=paper follows their text (softmax, mean over "
                "neighbours); the code scores with queries before bias and normalisation, here they are those that attention "
                "used. Selectivity, z-scores, drafters by layer and scale and the linear decay are the paper's; how many "
                "attentions count, how many drafters there are and where scales are counted from are ours, and start and decay "
                "follow its 600 and 70 of 650 entries; a drafter never gets more than there is, the rest goes to refiners. "
                f"Where calibration was not run, drafters are the first half of the layers at every scale{few}"
            ),
            url="https://arxiv.org/abs/2505.19602",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    given = setting.parameters
    base, percent, form = int(given["base"]), int(setting.point[1:]), str(given["form"])
    start, decay = float(given["start"]), float(given["decay"])
    if base < 0:
        raise UserError(f"base is {base}; give the entries that a head may hold before any is dropped, 0 or more")
    if percent > 100:
        raise UserError(f"b{percent} is out of range: give b0 to b100, percent of what the full model holds")
    if form not in FORMS:
        raise UserError(f"form is {form!r}; give {' or '.join(FORMS)}")
    if not 0 < start <= 1 or not 0 <= decay <= 1:
        raise UserError(f"start is {start} and decay is {decay}; a refiner holds the mean budget or less: give 0 to 1")
    return ScaleKV(
        model,
        drafters=read_drafters(str(given["drafters"]), model),
        mean=mean_budget(model, percent),
        start=start,
        decay=decay,
        form=form,
        base=base,
    )


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .selectivity import least_selective

    return least_selective(pipe, share=float(setting.parameters["share"]), top=int(setting.parameters["top"]))
