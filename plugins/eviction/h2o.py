"""Heavy hitters: the latest entries stay, and those that were paid most attention by all queries so far (arXiv 2306.14048)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

from .shared import NEUTRAL, PATTERN, POINTS, Evicting, best, entries

if TYPE_CHECKING:
    from torch import Tensor


class HeavyHitters(Evicting):
    def __init__(self, model: ModelSpec, count: int, *, recent: float) -> None:
        super().__init__(model, count)
        self._recent = recent

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return range(count)

    def accumulates(self, layer: int, group: int) -> bool:
        return True

    def pick(
        self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, *, attention_BHn: Tensor | None, **where: Any
    ) -> Tensor:
        assert attention_BHn is not None
        scores_BHn = attention_BHn.clone()
        scores_BHn[..., scores_BHn.shape[-1] - int(self._recent * count) :] = float("inf")
        return best(scores_BHn, count)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=POINTS,
        point_pattern=PATTERN,
        parameters={"recent": Parameter(default=0.5, help="share of the budget that is for the latest entries")},
        neutral=NEUTRAL,
        published=tuple(
            Published(setting=setting, model="var-d30", figures={"fid": fid}, grade="secondary", source=source)
            for setting, fid, source in (
                ("@r50", 3.04, "a note of HACK (arXiv 2504.09261), its comparison at 50 % of all tokens"),
                ("@r75", 8.80, "a digest of AMS-KV (arXiv 2511.16047), its comparison at 75 % saved"),
            )
        ),
        summary="keeps the latest entries and those that were paid most attention",
        provenance=Provenance(
            kind="from paper",
            note=(
                "made for text, where tokens come one by one: here entries are chosen once after every scale, by the attention "
                "that all its queries and those of earlier scales paid, each head by itself; half of the budget for the "
                "latest entries is the paper's"
            ),
            url="https://arxiv.org/abs/2306.14048",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    recent = float(setting.parameters["recent"])
    if not 0 <= recent <= 1:
        raise UserError(f"recent is {recent}; give a share of the budget, 0 to 1")
    return HeavyHitters(model, entries(setting.point, model), recent=recent)
