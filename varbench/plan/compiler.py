"""Compiles the policies of a row into a plan. The order is fixed: steps, guidance, depth, tokens, cache, liveness."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from varbench.errors import PlanError
from varbench.plan.steps import (
    MIXED,
    Accounting,
    CacheUse,
    LayerCall,
    Plan,
    Segment,
    SlotKey,
    Step,
    SubLayer,
    total,
)
from varbench.policies import (
    MAIN,
    BothBranches,
    CacheStrategy,
    DepthPolicy,
    EveryScale,
    FullDepth,
    Generator,
    GuidancePolicy,
    StepPolicy,
    StepSpec,
    SubLayerName,
    TokenPolicy,
)
from varbench.spec import ModelSpec

Policy = TypeVar("Policy")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Owned(Generic[Policy]):
    """A policy and the plugin that it came from, for messages."""

    plugin: str
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class RowPolicies:
    """All policies of one row. What is None behaves as in the full model."""

    name: str
    depth: Owned[DepthPolicy] | None = None
    steps: Owned[StepPolicy] | None = None
    guidance: Owned[GuidancePolicy] | None = None
    tokens: Owned[TokenPolicy] | None = None
    caches: tuple[Owned[CacheStrategy], ...] = ()
    generator: Owned[Generator] | None = None
    """Replaces the loop, and with it the plan."""

    @property
    def backbones(self) -> dict[str, ModelSpec]:
        """Models beside the main one that its steps run on."""
        given = self.steps.policy.backbones if self.steps else {}
        return {name: spec for name, spec in given.items() if name != MAIN}


def compile_plan(
    model: ModelSpec,
    row: RowPolicies,
    *,
    accounting: Accounting = "lossless",
    loaded: Mapping[str, ModelSpec] | None = None,
) -> Plan:
    """The plan of a row on a model, or a `PlanError` that names the plugin and the scale.

    `loaded` gives the sizes of further models as they are, where they differ from what the plugin expects.
    """
    if row.generator is not None:
        raise PlanError(
            f"{row.generator.plugin} replaces the generation loop, so {row.name} has no plan; `varbench run` measures it"
        )
    for owned in (row.depth, row.steps, row.guidance, row.tokens, *row.caches):
        if owned is not None and getattr(owned.policy, "dynamic", False):
            raise PlanError(
                f"{owned.plugin}: dynamic policies (work that depends on content) are not executed by this version; "
                "give counts that are fixed before the run"
            )
    step_policy = row.steps.policy if row.steps else EveryScale(model)
    backbones = {MAIN: model, **step_policy.backbones}
    backbones.update((name, spec) for name, spec in (loaded or {}).items() if name in backbones)
    specs = _checked_steps(model, step_policy.steps(), backbones, _owner(row.steps))
    branches = _branches(model, specs, row.guidance)
    layers = _layers(model, specs, backbones, row.depth)
    work = _token_work(model, specs, layers, row.tokens)
    caches = _Caches(
        model=model, backbones=backbones, specs=specs, layers=layers, work=work, row=row, accounting=accounting
    )
    uses = caches.uses()
    work = _live_memories(specs, layers, work)
    steps = []
    for index, spec in enumerate(specs):
        calls = tuple(
            LayerCall(
                layer=layer,
                slot=slot,
                attention=work[index, place][0],
                ffn=work[index, place][1],
                cache=uses[index, place],
            )
            for place, (layer, slot) in enumerate(layers[index])
        )
        later = {after.backbone for after in specs[index + 1 :]}
        steps.append(
            Step(
                scales=spec.scales,
                samples=spec.scales[-1],
                backbone=spec.backbone,
                branches=branches[index],
                mask="full" if len(spec.scales) == 1 else "block_causal",
                calls=calls,
                drops_backbone=bool(later) and spec.backbone not in later,
            )
        )
    return Plan(
        name=row.name,
        model=model,
        backbones=tuple(backbones.items()),
        accounting=accounting,
        cache_dtype=caches.dtype,
        steps=tuple(steps),
    )


def _owner(owned: Owned[Policy] | None) -> str:
    return owned.plugin if owned else "the full model"


def _checked_steps(
    model: ModelSpec, specs: Sequence[StepSpec], backbones: dict[str, ModelSpec], plugin: str
) -> tuple[StepSpec, ...]:
    if not specs:
        raise PlanError(f"{plugin}: the step policy gives no step; give at least one")
    for name, other in backbones.items():
        if other.sides != model.sides or other.tokenizer.vocabulary != model.tokenizer.vocabulary:
            raise PlanError(
                f"{plugin}: backbone {name!r} has scales {other.sides} and {other.tokenizer.vocabulary} codes, the main model "
                f"{model.sides} and {model.tokenizer.vocabulary}; both must speak the same tokenizer"
            )
    sampled = -1
    drawn: set[int] = set()
    encoded: dict[str, int] = {}
    for number, spec in enumerate(specs, 1):
        where = f"{plugin}: step {number}"
        if spec.backbone not in backbones:
            raise PlanError(f"{where} names backbone {spec.backbone!r}; the policy gives {', '.join(backbones)}")
        if not spec.scales:
            raise PlanError(f"{where} encodes no scale; leave the step out to skip a scale")
        for scale in spec.scales:
            if not 0 <= scale < model.scales:
                raise PlanError(f"{where} encodes scale {scale}; {model.name} has scales 0 to {model.scales - 1}")
        if list(spec.scales) != sorted(set(spec.scales)):
            raise PlanError(f"{where} encodes scales {spec.scales}; they must ascend")
        if spec.scales[-1] <= sampled:
            raise PlanError(
                f"{where} samples {model.scale_name(spec.scales[-1])}, which was passed before; scales ascend"
            )
        if number == 1 and spec.scales != (0,):
            raise PlanError(f"{where} must encode the first scale alone, not {spec.scales}")
        if spec.scales[0] <= encoded.get(spec.backbone, -1):
            raise PlanError(f"{where} encodes {model.scale_name(spec.scales[0])} twice on backbone {spec.backbone!r}")
        unknown = [scale for scale in spec.scales[:-1] if scale not in drawn]
        if unknown:
            raise PlanError(f"{where} encodes {model.scale_name(unknown[0])}, whose tokens no step has sampled before")
        sampled = encoded[spec.backbone] = spec.scales[-1]
        drawn.add(sampled)
    return tuple(specs)


def _branches(
    model: ModelSpec, specs: tuple[StepSpec, ...], guidance: Owned[GuidancePolicy] | None
) -> list[Literal[1, 2]]:
    policy = guidance.policy if guidance else BothBranches()
    counts: list[Literal[1, 2]] = []
    last: dict[str, int] = {}
    for spec in specs:
        scale = spec.scales[-1]
        name = policy.branches(scale)
        if name not in ("both", "labelled"):
            raise PlanError(
                f"{_owner(guidance)}: {name!r} branches at {model.scale_name(scale)}; give 'both' or 'labelled'"
            )
        count: Literal[1, 2] = 2 if name == "both" else 1
        if count > last.get(spec.backbone, 2):
            raise PlanError(
                f"{_owner(guidance)}: the unlabelled branch comes back at {model.scale_name(scale)}, but its keys and "
                "values were released when it stopped; a branch that ended cannot be read again"
            )
        last[spec.backbone] = count
        counts.append(count)
    return counts


def _layers(
    model: ModelSpec,
    specs: tuple[StepSpec, ...],
    backbones: dict[str, ModelSpec],
    depth: Owned[DepthPolicy] | None,
) -> list[list[tuple[int, int]]]:
    """For each step, (layer, slot) of each call in order."""
    policy = depth.policy if depth else FullDepth(model, backbones)
    calls = []
    for spec in specs:
        where = f"{_owner(depth)}: {model.scale_name(spec.scales[-1])}"
        seen: Counter[int] = Counter()
        step = []
        for layer in map(_whole, policy.layers(spec.scales[-1], spec.backbone)):
            if not 0 <= layer < backbones[spec.backbone].depth:
                raise PlanError(
                    f"{where} asks for layer {layer}; {backbones[spec.backbone].name} has layers 0 to "
                    f"{backbones[spec.backbone].depth - 1}"
                )
            step.append((layer, seen[layer]))
            seen[layer] += 1
        if not step:
            raise PlanError(f"{where} runs no layer; a step policy skips a scale, a depth policy cannot")
        calls.append(step)
    return calls


_Work = dict[tuple[int, int], tuple[SubLayer, SubLayer]]


def _token_work(
    model: ModelSpec,
    specs: tuple[StepSpec, ...],
    layers: list[list[tuple[int, int]]],
    tokens: Owned[TokenPolicy] | None,
) -> _Work:
    """Attention and FFN of each (step, call)."""
    work: _Work = {}
    for index, spec in enumerate(specs):
        available = sum(model.tokens[scale] for scale in spec.scales)
        for place, (layer, _) in enumerate(layers[index]):
            if tokens is None:
                work[index, place] = (SubLayer(tokens=available), SubLayer(tokens=available))
                continue
            names: tuple[SubLayerName, SubLayerName] = ("attention", "ffn")
            first, second = (_sub_layer(model, spec, layer, name, available, tokens) for name in names)
            work[index, place] = (first, second)
    return work


def _whole(number: int) -> int:
    """A plain integer: what only derives from one could compare as it likes."""
    try:
        return operator.index(number)
    except TypeError:
        raise PlanError(f"{number!r} is no whole number; layers, tokens and budgets are") from None


def _sub_layer(
    model: ModelSpec, spec: StepSpec, layer: int, name: SubLayerName, available: int, tokens: Owned[TokenPolicy]
) -> SubLayer:
    scale = spec.scales[-1]
    claimed = tokens.policy.tokens(layer, scale, name)
    count = None if claimed is None else _whole(claimed)
    remembered = tokens.policy.remembers(layer, scale, name)
    where = f"{tokens.plugin}: {name} of layer {layer} at {model.scale_name(scale)}"
    if count is not None and len(spec.scales) > 1:
        raise PlanError(f"{where} picks tokens in a step that encodes {len(spec.scales)} scales; that is not supported")
    if count is not None and not 1 <= count <= available:
        raise PlanError(f"{where} computes {count} tokens of {available}; give 1 to {available}")
    return SubLayer(tokens=available if count is None else count, picked=count is not None, remembered=remembered)


def _live_memories(specs: tuple[StepSpec, ...], layers: list[list[tuple[int, int]]], work: _Work) -> _Work:
    """Outputs are remembered only where a later call of the slot fills in from them."""
    live = dict(work)
    for which in (0, 1):
        wanted: dict[SlotKey, bool] = {}
        for index in reversed(range(len(specs))):
            for place, (layer, slot) in enumerate(layers[index]):
                key = SlotKey(specs[index].backbone, layer, slot)
                sub = live[index, place][which]
                needed = wanted.get(key, False)
                if sub.remembered:
                    wanted[key] = False
                if sub.picked:
                    wanted[key] = True
                pair = list(live[index, place])
                pair[which] = replace(sub, remembered=sub.remembered and needed)
                live[index, place] = (pair[0], pair[1])
    return live


class _Caches:
    """What each call reads, adds and leaves. Liveness lives here: what nothing reads later is not stored."""

    def __init__(
        self,
        *,
        model: ModelSpec,
        backbones: dict[str, ModelSpec],
        specs: tuple[StepSpec, ...],
        layers: list[list[tuple[int, int]]],
        work: _Work,
        row: RowPolicies,
        accounting: Accounting,
    ) -> None:
        self.model, self.backbones, self.specs, self.layers, self.work = model, backbones, specs, layers, work
        self.depth, self.strategies, self.accounting = row.depth, row.caches, accounting
        self.dtype = self._one("a cache type", [(o, o.policy.dtype) for o in self.strategies])

    def _one(self, what: str, claims: list[tuple[Owned[CacheStrategy], Value | None]]) -> Value | None:
        """The one claim that is made; two are refused by name."""
        made = [(owned.plugin, value) for owned, value in claims if value is not None]
        if len(made) > 1:
            raise PlanError(f"{' and '.join(plugin for plugin, _ in made)} both set {what}; a row has one owner of it")
        return made[0][1] if made else None

    def uses(self) -> dict[tuple[int, int], tuple[CacheUse, ...]]:
        """Cache uses of each (step, call)."""
        calls: dict[SlotKey, list[tuple[int, int]]] = {}
        for index, step in enumerate(self.layers):
            for place, (layer, slot) in enumerate(step):
                calls.setdefault(SlotKey(self.specs[index].backbone, layer, slot), []).append((index, place))
        uses: dict[tuple[int, int], list[CacheUse]] = {}
        for key, places in calls.items():
            for group, heads in enumerate(self._groups(key)):
                for at, use in zip(places, self._follow(key, places, group, heads), strict=True):
                    uses.setdefault(at, []).append(use)
        return self._with_room(calls, uses)

    def _groups(self, key: SlotKey) -> tuple[tuple[int, ...], ...]:
        everyone = tuple(range(self.backbones[key.backbone].heads))
        claims = [(owned, owned.policy.head_groups(key.layer)) for owned in self.strategies]
        groups = self._one("groups of heads", claims)
        if groups is None:
            return (everyone,)
        if sorted(head for group in groups for head in group) != list(everyone) or not all(groups):
            owner = next(owned.plugin for owned, claimed in claims if claimed is not None)
            raise PlanError(
                f"{owner}: head groups {groups} of layer {key.layer} are no partition of {len(everyone)} heads"
            )
        return tuple(tuple(group) for group in groups)

    def _follow(
        self, key: SlotKey, places: list[tuple[int, int]], group: int, heads: tuple[int, ...]
    ) -> list[CacheUse]:
        """One slot and head group through all its calls."""
        held: tuple[Segment, ...] = ()
        uses = []
        readers = [self.specs[index].scales[-1] for index, _ in places]
        for number, at in enumerate(places):
            spec = self.specs[at[0]]
            attention = self.work[at][0]
            if attention.picked:
                own: tuple[Segment, ...] = (Segment(spec.scales[-1], attention.tokens),)
            else:
                own = tuple(Segment(scale, self.model.tokens[scale]) for scale in spec.scales)
            kept, picked = self._kept(key, (*held, *own), readers[number:], group)
            uses.append(
                CacheUse(heads=heads, read=held, own=total(own), kept=kept, capacity=total(kept), picked=picked)
            )
            held = kept
        return uses

    def _kept(
        self, key: SlotKey, entries: tuple[Segment, ...], readers: list[int], group: int
    ) -> tuple[tuple[Segment, ...], bool]:
        """What stays after the call at scale `readers[0]`, when the scales `readers[1:]` run the slot again."""
        now, later = readers[0], readers[1:]
        wasteful = self.accounting == "upstream" or (
            self.depth is not None and self.depth.policy.retains(key.layer, now) and not self._is_last(now)
        )
        if not later and not wasteful:
            return (), False
        reader = later[0] if later else now + 1
        if reader < self.model.scales:
            entries = tuple(s for s in entries if self._keeps(key.layer, s, reader, later[1:], group))
        budget = self._budget(key.layer, now, group)
        if budget is None or not later:
            return entries, False
        return (Segment(MIXED, min(budget, total(entries))),), True

    def _is_last(self, scale: int) -> bool:
        return scale == self.specs[-1].scales[-1]

    def _keeps(self, layer: int, entry: Segment, reader: int, later: list[int], group: int) -> bool:
        if entry.scale == MIXED:
            return True
        for owned in self.strategies:
            if owned.policy.keeps(layer, entry.scale, reader, group):
                continue
            back = [scale for scale in later if owned.policy.keeps(layer, entry.scale, scale, group)]
            if back:
                raise PlanError(
                    f"{owned.plugin}: {self.model.scale_name(back[0])} reads what layer {layer} stored at "
                    f"{self.model.scale_name(entry.scale)}, but it was released before {self.model.scale_name(reader)}"
                )
            return False
        return True

    def _budget(self, layer: int, scale: int, group: int) -> int | None:
        claims = [(owned, owned.policy.budget(layer, scale, group)) for owned in self.strategies]
        budget = self._one("a budget of cache entries", claims)
        if budget is None:
            return None
        owner = next(owned.plugin for owned, claimed in claims if claimed is not None)
        if len(self.strategies) > 1:
            others = " and ".join(owned.plugin for owned in self.strategies if owned.plugin != owner)
            raise PlanError(
                f"{owner} picks single entries by content and cannot be joined with {others}, which drops whole scales"
            )
        budget = _whole(budget)
        if budget < 1:
            raise PlanError(
                f"{owner}: a budget of {budget} entries after {self.model.scale_name(scale)}; give 1 or more"
            )
        return budget

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
                            if total(uses[at][group].kept):
                                uses[at][group] = replace(uses[at][group], capacity=room)
        return {at: tuple(groups) for at, groups in uses.items()}
