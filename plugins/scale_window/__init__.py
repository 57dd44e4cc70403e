"""A window of whole scales: the coarsest are locked, of the others the most recent stay (AMS-KV, arXiv 2511.16047).

Points: `wN` is the capacity of a layer, in scales beside the locked ones; the oldest goes first. `demanding` layers have a
larger one; calibration finds them, as those whose keys are farthest from those of the scale before. `bN` keeps N percent of the
entries that the last step reads, as nearly as whole scales and one demanding layer at least allow: it says the capacity, and how
many layers are demanding, of all layers of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.engine.calibration import read_layers, written_layers
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from varbench import Pipeline


SHARE = 0.25


class ScaleWindow(CacheStrategy):
    def __init__(self, *, coarse: int, window: int, more: int, demanding: frozenset[int]) -> None:
        self._coarse, self._window, self._more, self._demanding = coarse, window, more, demanding

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        window = self._window + (self._more if layer in self._demanding else 0)
        return stays(written, reader, coarse=self._coarse, window=window)


def stays(written: int, reader: int, *, coarse: int, window: int) -> bool:
    """Whether a scale's entries are still there when another is computed, in a layer of this capacity."""
    return written < coarse or reader - written <= window


def kept(model: ModelSpec, window: int, *, coarse: int) -> int:
    """Entries that the last step reads, beside its own, in a layer of a capacity."""
    last = model.scales - 1
    return sum(model.tokens[scale] for scale in range(last) if stays(scale, last, coarse=coarse, window=window))


def allotted(model: ModelSpec, percent: int, *, coarse: int, more: int) -> tuple[int, int]:
    """The largest capacity that all layers can have within a percentage of what the last step reads, and how many are demanding:
    the number whose mean comes nearest to it, and one at least while anything is left out."""
    mean = model.starts[-2] * percent / 100
    window = max((w for w in range(model.scales) if kept(model, w, coarse=coarse) <= mean), default=0)
    least, most = (kept(model, w, coarse=coarse) for w in (window, window + more))
    if most == least:
        return window, 0
    return window, min(model.depth, max(1, round((mean - least) * model.depth / (most - least))))


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    widest = max(1, model.scales // 2 - 1)
    shares = ("b75", "b50", "b25", "b10")
    return Settings(
        points=(*shares, *(f"w{window}" for window in range(widest + 1))),
        default_points=shares[1:],
        point_pattern=r"w(0|[1-9][0-9]*)|b(0|[1-9][0-9]{0,2})",
        curves={"of a share": r"b\d+", "of a number of scales": r"w\d+"},
        parameters={
            "coarse": Parameter(default=min(2, model.scales), help="the first N scales are locked"),
            "demanding": Parameter(
                default="",
                help="layers of a larger capacity, as in 0.3.7; calibration finds them",
                calibrated=True,
            ),
            "more": Parameter(default=2, help="scales that a demanding layer holds more than the others"),
            "share": Parameter(default=SHARE, help="share of the layers that calibration calls demanding, at a wN"),
            "threshold": Parameter(
                default=0.0, help="calibration calls all layers demanding whose keys lie farther than this; 0: by share"
            ),
        },
        neutral=(
            "@b100",
            f"@w{model.scales}",
            f"@w0:demanding={written_layers(range(model.depth))}:more={model.scales}",
        ),
        published=(
            Published(
                setting="@w1",
                model="var-d30",
                figures={"fid": 2.09},
                grade="secondary",
                source="a digest of the paper (arXiv 2511.16047), its comparison at 75 % saved",
                conditions="A100; capacities are not said: w1 without demanding layers keeps 26 % of all tokens",
            ),
        ),
        summary="locks the coarsest scales and keeps a window of recent ones",
        provenance=Provenance(
            kind="from secondary note",
            note=(
                "the rule is a digest's of the paper, and so are the two locked scales and the measure, the distance of keys "
                "interpolated from the scale before; ours, since unknown: capacities, and a share of the layers as demanding "
                "(threshold=X: those beyond a distance, as in the paper, whose threshold is unknown), or at a bN as many as its "
                "entries allow. The paper tests at run time, when a layer's room is used up; here calibration does before, so "
                "that the plan is known; where it was not run no layer is demanding at a wN, and at a bN the first ones are, "
                "as the paper found"
            ),
            url="https://arxiv.org/abs/2511.16047",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    window, demanding = _capacity(setting, model)
    coarse, more = int(setting.parameters["coarse"]), int(setting.parameters["more"])
    listed = read_layers(str(setting.parameters["demanding"]), model, what="demanding")
    if listed and demanding not in (0, len(listed)):
        raise UserError(f"{setting.point} has {demanding} demanding layers, and demanding lists {len(listed)}")
    return ScaleWindow(coarse=coarse, window=window, more=more, demanding=frozenset(listed or range(demanding)))


def _capacity(setting: Setting, model: ModelSpec) -> tuple[int, int]:
    """Of most layers, and how many are demanding where nobody said which."""
    assert setting.point is not None
    coarse, more = int(setting.parameters["coarse"]), int(setting.parameters["more"])
    share, threshold = float(setting.parameters["share"]), float(setting.parameters["threshold"])
    if not 0 < share <= 1 or threshold < 0:
        raise UserError(f"share is {share} and threshold {threshold}; give a share above 0 and up to 1, and 0 or more")
    if not 0 <= coarse <= model.scales:
        raise UserError(f"coarse is {coarse}; {model.name} has {model.scales} scales, so give 0 to {model.scales}")
    if more < 0:
        raise UserError(f"more is {more}; give the scales that a demanding layer holds beyond the others, 0 or more")
    number = int(setting.point[1:])
    if setting.point[0] == "w":
        return number, 0
    if number > 100:
        raise UserError(f"{setting.point} is out of range: give b0 to b100, percent of what the last step reads")
    if threshold or share != SHARE:
        raise UserError(f"{setting.point} says how many layers are demanding; give share and threshold with a wN")
    return allotted(model, number, coarse=coarse, more=more)


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .similarity import farthest

    _, demanding = _capacity(setting, pipe.model)
    threshold = float(setting.parameters["threshold"])
    count = demanding or max(1, round(float(setting.parameters["share"]) * pipe.model.depth))
    return farthest(pipe, count=None if threshold else count, beyond=threshold)
