"""A window of whole scales: the coarsest are locked, of the others the most recent stay (AMS-KV, arXiv 2511.16047).

Points: `wN` is the capacity of a layer, in scales beside the locked ones; the oldest goes first. `demanding` layers have a
larger one; calibration finds them, as those whose keys are farthest from those of the scale before.
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


class ScaleWindow(CacheStrategy):
    def __init__(self, *, coarse: int, window: int, more: int, demanding: frozenset[int]) -> None:
        self._coarse, self._window, self._more, self._demanding = coarse, window, more, demanding

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        capacity = self._window + (self._more if layer in self._demanding else 0)
        return written < self._coarse or reader - written <= capacity


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    widest = max(1, model.scales // 2 - 1)
    return Settings(
        points=tuple(f"w{window}" for window in range(widest + 1)),
        default_points=tuple(f"w{window}" for window in range(1, min(widest, 3) + 1)),
        point_pattern=r"w[0-9]+",
        parameters={
            "coarse": Parameter(default=min(2, model.scales), help="the first N scales are locked"),
            "demanding": Parameter(
                default="", help="layers of a larger capacity, as in 0.3.7; calibration finds them", calibrated=True
            ),
            "more": Parameter(default=2, help="scales that a demanding layer holds more than the others"),
            "share": Parameter(default=0.25, help="share of the layers that calibration calls demanding"),
        },
        neutral=(f"@w{model.scales}", f"@w0:demanding={written_layers(range(model.depth))}:more={model.scales}"),
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
                "in the place of a threshold. The paper tests at run time, when a layer's room is used up; here calibration "
                "does before, so that the plan is known, and where it was not run no layer is demanding"
            ),
            url="https://arxiv.org/abs/2511.16047",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    coarse, more = int(setting.parameters["coarse"]), int(setting.parameters["more"])
    if not 0 <= coarse <= model.scales:
        raise UserError(f"coarse is {coarse}; {model.name} has {model.scales} scales, so give 0 to {model.scales}")
    if more < 0:
        raise UserError(f"more is {more}; give the scales that a demanding layer holds beyond the others, 0 or more")
    return ScaleWindow(
        coarse=coarse,
        window=int(setting.point[1:]),
        more=more,
        demanding=frozenset(read_layers(str(setting.parameters["demanding"]), model, what="demanding")),
    )


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .similarity import farthest

    return farthest(pipe, share=float(setting.parameters["share"]))
