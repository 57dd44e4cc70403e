"""A window of scales: the coarsest and the most recent stay in the cache (after AMS-KV, arXiv 2511.16047).

Points: `wN` keeps the coarsest scales and the N that come right before the one that runs. `demanding` layers keep
everything; calibration finds them, as those whose keys are least alike from scale to scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.engine.calibration import read_layers, written_layers
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Setting, Settings
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from varbench import Pipeline


class ScaleWindow(CacheStrategy):
    def __init__(self, *, coarse: int, window: int, demanding: frozenset[int]) -> None:
        self._coarse, self._window, self._demanding = coarse, window, demanding

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        return layer in self._demanding or written < self._coarse or reader - written <= self._window


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    widest = max(1, model.scales // 2 - 1)
    return Settings(
        points=tuple(f"w{window}" for window in range(widest + 1)),
        default_points=tuple(f"w{window}" for window in range(1, min(widest, 3) + 1)),
        point_pattern=r"w[0-9]+",
        parameters={
            "coarse": Parameter(default=model.scales * 3 // 10, help="the first N scales always stay"),
            "demanding": Parameter(default="", help="layers that keep everything, as in 0.3.7; calibration finds them"),
            "share": Parameter(default=0.25, help="share of the layers that calibration calls demanding"),
        },
        neutral=(f"@w{model.scales}", f"@w0:demanding={written_layers(range(model.depth))}"),
        summary="keeps the coarsest scales and a window of recent ones",
        provenance=Provenance(
            kind="from paper",
            note=(
                "windows, the number of coarse scales and the share of demanding layers are not published and are ours; so "
                "is the measure of similarity, and that demanding layers keep everything; without calibration none is "
                "demanding"
            ),
            url="https://arxiv.org/abs/2511.16047",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    coarse = int(setting.parameters["coarse"])
    if not 0 <= coarse <= model.scales:
        raise UserError(f"coarse is {coarse}; {model.name} has {model.scales} scales, so give 0 to {model.scales}")
    return ScaleWindow(
        coarse=coarse,
        window=int(setting.point[1:]),
        demanding=frozenset(read_layers(str(setting.parameters["demanding"]), model, what="demanding")),
    )


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .similarity import least_alike

    return least_alike(pipe, share=float(setting.parameters["share"]))
