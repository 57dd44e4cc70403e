"""Two kinds of heads, few entries for the one and many for the other (HACK, arXiv 2504.09261).

Contextual heads, in which all queries look at the same entries, keep a few with the most attention. Structural heads, in
which each query looks at a place of its own, keep the first two scales, the latest one, and of the others what is looked at.
Which head is which is found by calibration, over all layers together, so that layers get budgets of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.engine.calibration import read_masks
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

from .shared import NEUTRAL, PATTERN, POINTS, Evicting, best, entries, readable, too_few

if TYPE_CHECKING:
    from torch import Tensor

    from varbench import Pipeline

OBSERVERS = 32
Kinds = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""For each layer its contextual heads and its structural ones."""


class TwoKinds(Evicting):
    def __init__(
        self,
        model: ModelSpec,
        kinds: Kinds,
        budgets: tuple[int, int],
        *,
        observers: int,
        cumulative: bool,
        merge: bool,
        weighed: bool,
        products: bool,
    ) -> None:
        super().__init__(model, max(budgets))
        self._kinds, self._budgets, self._observers = kinds, budgets, observers
        self._cumulative, self._merge, self._weighed, self._products = cumulative, merge, weighed, products

    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        whole = min(self._budgets) >= readable(self.model)
        return None if whole or not all(self._kinds[layer]) else self._kinds[layer]

    def _is_contextual(self, layer: int, group: int) -> bool:
        """A layer of one kind alone is one group."""
        return group == 0 and bool(self._kinds[layer][0])

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        count = self._budgets[0 if self._is_contextual(layer, group) else 1]
        return count if self.model.starts[scale + 1] > count else None

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        if self._products:
            return None
        wanted = min(self._observers, count)
        return [place * count // wanted for place in range(wanted)]

    def accumulates(self, layer: int, group: int) -> bool:
        return self._cumulative

    def merges(self, layer: int, scale: int, group: int) -> bool:
        return self._merge and self._is_contextual(layer, group) and scale == self.model.scales - 2

    def merging_weights(self, attention_BHn: Tensor | None, *, layer: int, scale: int, group: int) -> Tensor | None:
        """Nobody is left without: an entry that no query looks at would count as nothing, and a group of such ones be 0 / 0."""
        return None if attention_BHn is None or not self._weighed else attention_BHn + 1e-6

    def pick(
        self,
        keys_BHnc: Tensor,
        queries_BHLc: Tensor,
        count: int,
        *,
        attention_BHn: Tensor | None,
        layer: int,
        group: int,
        **where: Any,
    ) -> Tensor:
        if attention_BHn is None:
            scores_BHn = observed_products(keys_BHnc, queries_BHLc, observers=self._observers).double()
        else:
            scores_BHn = attention_BHn.double()
        if not self._is_contextual(layer, group):
            rank = 2 * scores_BHn.abs().amax(dim=-1, keepdim=True) + 1  # so each rank outweighs all scores
            scores_BHn[..., : self.model.starts[2]] += 2 * rank
            scores_BHn[..., scores_BHn.shape[-1] - queries_BHLc.shape[2] :] += rank
        return best(scores_BHn, count)


def observed_products(keys_BHnc: Tensor, queries_BHLc: Tensor, *, observers: int) -> Tensor:
    """Each entry's products with the observers' queries, added up."""
    import torch

    count = queries_BHLc.shape[2]
    wanted = min(observers, count)
    places = torch.arange(wanted, device=queries_BHLc.device) * count // wanted
    watching_BH1c = queries_BHLc[:, :, places].float().sum(dim=2, keepdim=True)
    return (keys_BHnc.float() @ watching_BH1c.transpose(2, 3)).squeeze(-1)


def budgets(model: ModelSpec, mean: int, *, contextual: float, ratio: float) -> tuple[int, int]:
    """Entries of a contextual and of a structural head, such that heads hold `mean` on average.

    A structural head cannot hold more than there is; the rest then goes to the contextual ones.
    """
    most = readable(model)
    if contextual in (0, 1):
        return mean, mean
    small = mean * ratio
    large = (mean - contextual * small) / (1 - contextual)
    if large > most:
        small, large = (mean - (1 - contextual) * most) / contextual, most
    return max(1, round(small)), max(1, round(large))


def read_kinds(text: str, model: ModelSpec, *, share: float) -> Kinds:
    """Contextual heads as calibration writes them, a mask for each layer; by default the first ones of every layer."""
    first = frozenset(range(round(share * model.heads)))
    given = read_masks(text, count=model.depth, bits=model.heads, what="contextual") if text else (first,) * model.depth
    return tuple((tuple(sorted(heads)), tuple(h for h in range(model.heads) if h not in heads)) for heads in given)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    least = model.starts[2] + model.tokens[-2]
    return Settings(
        points=POINTS,
        point_pattern=PATTERN,
        parameters={
            "contextual": Parameter(
                default="",
                help="contextual heads, a hexadecimal mask for each layer; calibration finds them",
                calibrated=True,
            ),
            "share": Parameter(default=0.5, help="share of all heads that are contextual"),
            "ratio": Parameter(default=0.25, help="a contextual head's budget over the mean one"),
            "observers": Parameter(default=OBSERVERS, help="queries of a scale, evenly spaced, that observe"),
            "cumulative": Parameter(default=False, help="add attention up over scales"),
            "merge": Parameter(
                default=False, help="merge what goes from contextual heads into what stays, at the last choice"
            ),
            "weighed": Parameter(default=False, help="merged entries count by what attention paid them, not all alike"),
            "products": Parameter(
                default=False, help="entries are scored by raw products with the observers' queries, without softmax"
            ),
        },
        neutral=NEUTRAL,
        published=tuple(
            Published(
                setting=setting,
                model="var-d30",
                figures={"fid": fid},
                grade="secondary",
                source=f"a note of the paper (arXiv 2504.09261), {setting[2:]} % of all tokens dropped; full model 1.92",
                conditions="A100; merging is on in the paper",
            )
            for setting, fid in (("@r50", 2.06), ("@r70", 2.78))
        ),
        summary="two kinds of heads, one with few entries and one with many",
        provenance=Provenance(
            kind="from secondary note",
            note=(
                "the rule is a digest's of the paper; ours, since unknown: half of the heads are contextual, at a quarter of the "
                "mean budget; attention is softmax's (products=true: raw products), of the current scale's observers alone "
                "(cumulative=true adds it up); a "
                "scale's own tokens count as soon as it is over; where a structural head has no room for first scales and "
                "latest one, it keeps the most looked at of the latter; merging is off, and averages into the nearest key, all "
                "entries alike (weighed=true: by what they were paid); where calibration was not run, the first half of each "
                "layer's heads is contextual; "
                f"8 images calibrate, of both branches{too_few(model, least, 'first scales and latest one')}"
            ),
            url="https://arxiv.org/abs/2504.09261",
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    given = setting.parameters
    share, ratio, observers = float(given["share"]), float(given["ratio"]), int(given["observers"])
    if not 0 <= share <= 1 or not 0 <= ratio <= 1 or observers < 1:
        raise UserError(
            f"share is {share}, ratio {ratio} and observers {observers}; give shares from 0 to 1, and 1 or more"
        )
    products = bool(given["products"])
    if products and (attention := [name for name in ("cumulative", "weighed") if given[name]]):
        raise UserError(f"{attention[0]} is of attention, and products=true looks at none: give one of the two")
    kinds = read_kinds(str(given["contextual"]), model, share=share)
    contextual = sum(len(first) for first, _ in kinds) / (model.depth * model.heads)
    return TwoKinds(
        model,
        kinds,
        budgets(model, entries(setting.point, model), contextual=contextual, ratio=ratio),
        observers=observers,
        cumulative=bool(given["cumulative"]),
        merge=bool(given["merge"]),
        weighed=bool(given["weighed"]),
        products=products,
    )


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .variance import least_varied

    return least_varied(pipe, share=float(setting.parameters["share"]))
