"""An observation window: the last queries' entries stay, and those that these queries pay most attention to, with their
neighbours (SnapKV, arXiv 2404.14469)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

from .shared import NEUTRAL, PATTERN, POINTS, Evicting, best, entries, too_few

if TYPE_CHECKING:
    from torch import Tensor

WINDOW, POOL = 32, 5


class Snap(Evicting):
    def __init__(self, model: ModelSpec, count: int, *, window: int, pool: int) -> None:
        super().__init__(model, count)
        self._window, self._pool = window, pool

    def _observed(self, count: int) -> int:
        return max(1, min(self._window, self.count // 2, count))

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return range(count - self._observed(count), count)

    def pick(
        self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, *, attention_BHn: Tensor | None, **where: Any
    ) -> Tensor:
        import torch
        import torch.nn.functional as F

        assert attention_BHn is not None
        window = self._observed(queries_BHLc.shape[2])
        before_BHn = attention_BHn[..., : keys_BHnc.shape[2] - window]
        pooled_BHn = F.avg_pool1d(before_BHn, self._pool, stride=1, padding=self._pool // 2)
        own = torch.arange(before_BHn.shape[-1], keys_BHnc.shape[2], device=keys_BHnc.device)
        return torch.cat((best(pooled_BHn, count - window), own.expand(*keys_BHnc.shape[:2], -1)), dim=-1)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=POINTS,
        point_pattern=PATTERN,
        parameters={
            "window": Parameter(
                default=WINDOW, help="last queries of a scale that observe; at most half of the budget"
            ),
            "pool": Parameter(default=POOL, help="entries over which attention is averaged, an odd number"),
        },
        neutral=NEUTRAL,
        published=(
            Published(
                setting="@r50",
                model="var-d30",
                figures={"fid": 3.09},
                grade="secondary",
                source="a note of HACK (arXiv 2504.09261), its comparison at 50 % of all tokens",
            ),
        ),
        summary="keeps what the last queries of a scale look at",
        provenance=Provenance(
            kind="from paper",
            note=(
                "made for a prompt that is compressed once: that every scale is taken for the end of a prompt, its last queries "
                "in raster order for the window, and that entries of several scales are neighbours, is ours; so are the "
                f"sizes of window and pool{too_few(model, 2 * WINDOW, 'two windows, and the window is then half of them')}"
            ),
            url="https://arxiv.org/abs/2404.14469",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    window, pool = int(setting.parameters["window"]), int(setting.parameters["pool"])
    if window < 1 or pool < 1 or pool % 2 == 0:
        raise UserError(f"window is {window} and pool is {pool}; give a window of 1 or more and an odd pool")
    return Snap(model, entries(setting.point, model), window=window, pool=pool)
