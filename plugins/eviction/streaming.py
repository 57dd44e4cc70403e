"""Attention sinks and a window: the first entries and the latest stay, whatever they hold (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

from .shared import NEUTRAL, PATTERN, POINTS, Evicting, entries, too_few

if TYPE_CHECKING:
    from torch import Tensor

SINKS = 4


class Streaming(Evicting):
    def __init__(self, model: ModelSpec, count: int, *, sinks: int) -> None:
        super().__init__(model, count)
        self._sinks = sinks

    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **where: Any) -> Tensor:
        import torch

        held, sinks = keys_BHnc.shape[2], min(self._sinks, count // 2)
        places = torch.arange(held, device=keys_BHnc.device)
        places = torch.cat((places[:sinks], places[held - count + sinks :]))
        return places.expand(*keys_BHnc.shape[:2], -1)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=POINTS,
        point_pattern=PATTERN,
        parameters={"sinks": Parameter(default=SINKS, help="first entries that stay; at most half of the budget")},
        neutral=NEUTRAL,
        published=(
            Published(
                setting="@r75",
                model="var-d30",
                figures={"fid": 2.81},
                grade="secondary",
                source="a digest of AMS-KV (arXiv 2511.16047), its comparison at 75 % saved, where it is called sink and window",
                conditions="A100; how many sinks is not said",
            ),
        ),
        summary="keeps the first entries and the latest",
        provenance=Provenance(
            kind="from paper",
            note=(
                "made for text, where tokens come one by one: that it is applied after every scale, in raster order, is ours; "
                f"four sinks are the paper's{too_few(model, 2 * SINKS, 'twice the sinks, which are then half of them')}"
            ),
            url="https://arxiv.org/abs/2309.17453",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    sinks = int(setting.parameters["sinks"])
    if sinks < 0:
        raise UserError(f"sinks is {sinks}; give the first entries that stay, 0 or more")
    return Streaming(model, entries(setting.point, model), sinks=sinks)
