"""What each layer call reads from its cache, adds to it and leaves: the part of compiling where liveness lives."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

from varbench.errors import PlanError
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import MIXED, Accounting, CacheUse, Segment, SlotKey, SubLayer, total
from varbench.policies import CacheStrategy, StepSpec, StoredForm
from varbench.spec import ModelSpec

Value = TypeVar("Value")
SubLayersOf = dict[tuple[int, int], tuple[SubLayer, SubLayer]]
"""Attention and FFN of each (step, call)."""


class Caches:
    """What each call reads, adds and leaves. Liveness lives here: what nothing reads later is not stored."""

    def __init__(
        self,
        *,
        model: ModelSpec,
        backbones: dict[str, ModelSpec],
        specs: tuple[StepSpec, ...],
        layers: list[list[tuple[int, int]]],
        work: SubLayersOf,
        row: RowPolicies,
        accounting: Accounting,
    ) -> None:
        self.model, self.backbones, self.specs, self.layers, self.work = model, backbones, specs, layers, work
        self.depth, self.strategies, self.accounting = row.depth, row.caches, accounting
        ways: list[tuple[Owned[CacheStrategy], Any]] = [(o, o.policy.form or o.policy.dtype) for o in self.strategies]
        self.stored: StoredForm | str | None = self._one("how keys and values are stored", ways)

    def _one(self, what: str, claims: list[tuple[Owned[CacheStrategy], Value | None]]) -> Value | None:
        """The one claim that is made; two are refused by name."""
        made = [(owned.plugin, value) for owned, value in claims if value is not None]
        if len(made) > 1:
            raise PlanError(f"{' and '.join(plugin for plugin, _ in made)} both set {what}; a row has one owner of it")
        return made[0][1] if made else None

    def uses(self) -> dict[tuple[int, int], tuple[CacheUse, ...]]:
        """Cache uses of each (step, call) whose attention is computed."""
        calls: dict[SlotKey, list[tuple[int, int]]] = {}
        for index, step in enumerate(self.layers):
            for place, (layer, slot) in enumerate(step):
                if self.work[index, place][0].tokens:
                    calls.setdefault(SlotKey(self.specs[index].backbone, layer, slot), []).append((index, place))
        uses: dict[tuple[int, int], list[CacheUse]] = {}
        for key, places in calls.items():
            for group, heads in enumerate(self._groups(key)):
                for at, use in zip(places, self._follow(key, places, group, heads), strict=True):
                    uses.setdefault(at, []).append(use)
        return self._with_room(calls, uses)

    def _groups(self, key: SlotKey) -> tuple[tuple[int, ...], ...]:
        everyone = tuple(range(self.backbones[key.backbone].heads))
        claims = [(owned, _groups_of(owned, key.layer)) for owned in self.strategies]
        groups = self._one("groups of heads", claims)
        if groups is None:
            return (everyone,)
        if sorted(head for group in groups for head in group) != list(everyone) or not all(groups):
            owner = next(owned.plugin for owned, claimed in claims if claimed is not None)
            raise PlanError(
                f"{owner}: head groups {groups} of layer {key.layer} are no partition of {len(everyone)} heads"
            )
        return groups

    def _follow(
        self, key: SlotKey, places: list[tuple[int, int]], group: int, heads: tuple[int, ...]
    ) -> list[CacheUse]:
        """One slot and head group through all its calls."""
        held: tuple[Segment, ...] = ()
        uses = []
        specs = [self.specs[index] for index, _ in places]
        for number, (at, spec) in enumerate(zip(places, specs, strict=True)):
            attention = self.work[at][0]
            if attention.picked:
                own: tuple[Segment, ...] = (Segment(spec.scales[-1], attention.tokens),)
            else:
                own = tuple(Segment(scale, self.model.tokens[scale]) for scale in spec.scales)
            kept, picked = self._kept(key, (*held, *own), specs[number:], group)
            use = CacheUse(heads=heads, read=held, own=total(own), kept=kept, capacity=total(kept), picked=picked)
            uses.append(self._looked_at(use, key.layer, spec.scales[-1], group))
            held = kept
        uses = _without_idle_looks(uses)
        if any(use.accumulated and not use.picked and total(use.kept) < use.attended for use in uses):
            raise PlanError(
                f"attention adds up over scales in layer {key.layer}, which drops whole scales beside; drop by `pick`"
            )
        return uses

    def _looked_at(self, use: CacheUse, layer: int, scale: int, group: int) -> CacheUse:
        """With the queries that a strategy observes, and with what it does beside choosing."""
        for owned in self.strategies:
            observes, policy = owned.policy.observes, owned.policy
            places = owned.ask(observes, layer, scale, group, use.own)
            if places is not None:
                observed = tuple(owned.whole(place, observes, layer, scale, group, use.own) for place in places)
                if not observed or sorted({*observed} & {*range(use.own)}) != list(observed):
                    raise PlanError(
                        f"{owned.plugin}: observes queries {observed} of {use.own} of layer {layer} at "
                        f"{self.model.scale_name(scale)}; give places from 0 to {use.own - 1}, ascending"
                    )
                use = replace(use, observed=observed, accumulated=owned.agrees(policy.accumulates, layer, group))
            if use.picked and total(use.kept) < use.attended and owned.agrees(policy.merges, layer, scale, group):
                use = replace(use, merged=True)
        return use

    def _kept(
        self, key: SlotKey, entries: tuple[Segment, ...], specs: list[StepSpec], group: int
    ) -> tuple[tuple[Segment, ...], bool]:
        """What stays after the call of the first step, when the others run the slot again. Of what one of them encodes again, the
        entries end before it."""
        now, later = specs[0].scales[-1], [spec.scales[-1] for spec in specs[1:]]

        def readers(entry: Segment) -> list[int]:
            ends = (number for number, spec in enumerate(specs[1:]) if spec.scales[0] <= entry.scale)
            return later[: next(ends, None)]

        wasteful = self.accounting == "upstream" or (
            self.depth is not None
            and self.depth.agrees(self.depth.policy.retains, key.layer, now)
            and not self._is_last(now)
        )
        if not later and not wasteful:
            return (), False
        reader = later[0] if later else now + 1
        if later:
            entries = tuple(entry for entry in entries if readers(entry))
        if self.strategies and reader < self.model.scales:
            entries = tuple(s for s in entries if self._keeps(key.layer, s, reader, readers(s)[1:], group))
        budget = self._budget(key.layer, now, group)
        if budget is None or not later:
            return entries, False
        again = [spec for one, spec in pairwise(specs) if spec.scales[0] <= one.scales[-1]]
        if again:
            raise PlanError(
                f"layer {key.layer} picks single cache entries after {self.model.scale_name(now)}, and "
                f"{self.model.scale_name(again[0].scales[0])} is encoded again later; that is not supported"
            )
        return (Segment(MIXED, min(budget, total(entries))),), True

    def _is_last(self, scale: int) -> bool:
        return scale == self.specs[-1].scales[-1]

    def _keeps(self, layer: int, entry: Segment, reader: int, later: list[int], group: int) -> bool:
        if entry.scale == MIXED:
            return True
        for owned in self.strategies:
            keeps = owned.policy.keeps
            if owned.agrees(keeps, layer, entry.scale, reader, group):
                continue
            back = [scale for scale in later if owned.agrees(keeps, layer, entry.scale, scale, group)]
            if back:
                raise PlanError(
                    f"{owned.plugin}: {self.model.scale_name(back[0])} reads what layer {layer} stored at "
                    f"{self.model.scale_name(entry.scale)}, but it was released before {self.model.scale_name(reader)}"
                )
            return False
        return True

    def _budget(self, layer: int, scale: int, group: int) -> int | None:
        claims = [(owned, owned.count(owned.policy.budget, layer, scale, group)) for owned in self.strategies]
        budget = self._one("a budget of cache entries", claims)
        if budget is None:
            return None
        owner = next(owned.plugin for owned, claimed in claims if claimed is not None)
        others = [
            owned for owned, claimed in claims if claimed is None and self._drops_scales(owned, layer, scale, group)
        ]
        if others:
            raise PlanError(
                f"{owner} picks single entries by content and cannot be joined with "
                f"{' and '.join(owned.plugin for owned in others)}, which drops whole scales"
            )
        if budget < 1:
            raise PlanError(
                f"{owner}: a budget of {budget} entries after {self.model.scale_name(scale)}; give 1 or more"
            )
        return budget

    def _drops_scales(self, owned: Owned[CacheStrategy], layer: int, scale: int, group: int) -> bool:
        later = range(scale + 1, self.model.scales)
        keeps = owned.policy.keeps
        return not all(owned.agrees(keeps, layer, old, new, group) for old in range(scale + 1) for new in later)

    def _with_room(
        self, calls: dict[SlotKey, list[tuple[int, int]]], uses: dict[tuple[int, int], list[CacheUse]]
    ) -> dict[tuple[int, int], tuple[CacheUse, ...]]:
        """Sets capacities: a buffer has room for all that it will hold until the next step that frees some buffer.

        So a cache is allocated once where nothing is ever freed, and does not sit there half empty while others,
        soon to be freed, are full. Upstream accounting grows by concatenation, entry for entry.
        """
        if self.accounting == "lossless":
            ends = [places[-1] for places in calls.values()]
            frees = sorted({at[0] for at in ends if not total(uses[at][0].kept)})
            for places in calls.values():
                for group in range(len(uses[places[0]])):
                    for phase_end in [*frees, len(self.specs)]:
                        phase_start = max([-1, *(f for f in frees if f < phase_end)]) + 1
                        inside = [at for at in places if phase_start <= at[0] <= phase_end]
                        room = max((total(uses[at][group].kept) for at in inside), default=0)
                        for at in inside:
                            if total(uses[at][group].kept) and uses[at][group].capacity != room:
                                uses[at][group] = replace(uses[at][group], capacity=room)
        return {at: tuple(groups) for at, groups in uses.items()}


def _without_idle_looks(uses: list[CacheUse]) -> list[CacheUse]:
    """One slot's uses without attention that no choice is made by, then or later."""
    found, chooses_later = [], False
    for use in reversed(uses):
        accumulated = use.accumulated and chooses_later
        observed = use.observed if use.picked or accumulated else ()
        idle = (observed, accumulated) != (use.observed, use.accumulated)
        found.append(replace(use, observed=observed, accumulated=accumulated) if idle else use)
        chooses_later |= use.picked
    return found[::-1]


def _groups_of(owned: Owned[CacheStrategy], layer: int) -> tuple[tuple[int, ...], ...] | None:
    groups = owned.ask(owned.policy.head_groups, layer)
    if groups is None:
        return None
    try:
        return tuple(tuple(owned.whole(head, owned.policy.head_groups, layer) for head in group) for group in groups)
    except TypeError:
        raise PlanError(
            f"{owned.plugin}: head groups {groups!r} of layer {layer}; give groups of heads' numbers"
        ) from None
