"""Guidance thinned: the labelled branch alone from some scale on, and a strength for each scale before it.

Points: `all` runs both branches at every scale, as the full model does; `fromN` runs the labelled branch alone from scale N
on, counted from 1. There, half of the rows, of their cache and of the work are saved, where most tokens are. `shareN` runs both
branches, and from scale N on what the labelled one's attention gives is used for both: half of the cache and of attention's work.
"""

from __future__ import annotations

from typing import Literal

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import GuidancePolicy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

ALL = "all"
DEFAULT_COUNT = 3
"""How many of the last scales `run` thins unless told otherwise."""
PUBLISHED = (
    Published(
        setting="@from1", model="var-d16", figures={"fid": 12.11, "is": 106}, grade="secondary",
        source="issue 180 of the VAR repository", conditions="a user's own figures, with no guidance at any scale",
    ),
)  # fmt: skip


def ramp(model: ModelSpec) -> tuple[float, ...]:
    """The official strength of each scale, as a share of the run's guidance."""
    return tuple(scale / (model.scales - 1) for scale in range(model.scales))


def strengths(shape: str, model: ModelSpec) -> tuple[float, ...]:
    """The share of the run's guidance at each scale."""
    if shape == "ramp":
        return ramp(model)
    if shape == "constant":
        return (1.0,) * model.scales
    try:
        given = tuple(map(float, shape.split("/")))
    except ValueError:
        given = ()
    if len(given) != model.scales or not all(0 <= share < float("inf") for share in given):
        raise UserError(
            f"shape is {shape!r}; give ramp, constant, or {model.scales} shares of 0 or more, one a scale of {model.name}, "
            "as in 0/0.5/1"
        )
    return given


class Thinned(GuidancePolicy):
    """Both branches on the first `whole` scales, each at its own strength."""

    def __init__(self, whole: int, shares: tuple[float, ...], *, shared_from: int) -> None:
        self._whole, self._shares, self._shared_from = whole, shares, shared_from

    def branches(self, scale: int) -> Literal["both", "labelled"]:
        return "both" if scale < self._whole else "labelled"

    def strength(self, scale: int) -> float:
        return self._shares[scale]

    def shares(self, scale: int) -> bool:
        return scale >= self._shared_from


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    finer = range(model.scales, model.scales // 2, -1)
    return Settings(
        points=(ALL, *(f"from{scale}" for scale in finer), "from1", *(f"share{scale}" for scale in finer), "share1"),
        default_points=tuple(f"from{scale}" for scale in finer[:DEFAULT_COUNT]),
        point_pattern=r"(from|share)[1-9][0-9]*",
        parameters={
            "shape": Parameter(
                default="ramp",
                help="strength over the scales: ramp, as official; constant; or a share of the run's guidance for each "
                "scale, as in 0/0.5/1",
            )
        },
        neutral=(f"@{ALL}", f"@{ALL}:shape={'/'.join(map(str, ramp(model)))}"),
        published=PUBLISHED,
        summary="guidance at the first scales alone, or with another strength at each",
        provenance=Provenance(
            kind="ours",
            note=(
                "one scale for all images, chosen beforehand; what SkipVAR (arXiv 2506.08908), StageVAR (2512.16483) and "
                "LD-Pruning (2606.00310) share, without what they decide by content. shareN is LiteVAR's sharing of attention "
                "across guidance branches (arXiv 2411.17178) as its text has it, of outputs, at the scales that are chosen here; "
                "its code shares attention weights at all scales and computes both"
            ),
        ),
    )


@hookimpl
def varbench_guidance_policy(setting: Setting, model: ModelSpec) -> GuidancePolicy:
    assert setting.point is not None
    kind = setting.point.rstrip("0123456789")
    first = model.scales + 1 if setting.point == ALL else int(setting.point.removeprefix(kind))
    if setting.point != ALL and not 1 <= first <= model.scales:
        raise UserError(
            f"{setting.point} is out of range: {model.name} has {model.scales} scales, so give {kind}1 to "
            f"{kind}{model.scales}, or {ALL}"
        )
    shares = strengths(str(setting.parameters["shape"]), model)
    alone, shared = (first, model.scales + 1) if kind != "share" else (model.scales + 1, first)
    return Thinned(alone - 1, shares, shared_from=shared - 1)
