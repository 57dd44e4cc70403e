"""Compiles the policies of a row into a plan. The order is fixed: steps, guidance, depth, tokens, cache, liveness;
and last, so for each way that a decision by content may take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from varbench.errors import PlanError
from varbench.plan.cache_uses import Caches, SubLayersOf
from varbench.plan.decided import with_decision
from varbench.plan.declared import Transform
from varbench.plan.owned import Owned, Policy, RowPolicies
from varbench.plan.steps import Accounting, LayerCall, Plan, SlotKey, Step, SubLayer
from varbench.plan.widths import choosing, own_stored, with_widths
from varbench.policies import (
    MAIN,
    BothBranches,
    DepthPolicy,
    EveryScale,
    FullDepth,
    GuidancePolicy,
    StepSpec,
    StoredForm,
    SubLayerName,
    TokenPolicy,
)
from varbench.spec import ModelSpec


def compile_plan(
    model: ModelSpec,
    row: RowPolicies,
    *,
    accounting: Accounting = "lossless",
    loaded: Mapping[str, ModelSpec] | None = None,
    given: int = 0,
) -> Plan:
    """The plan of a row on a model, or a `PlanError` that names the plugin and the scale.

    `loaded` gives the sizes of further models as they are, where they differ from what the plugin expects. Of the first
    `given` scales codes are there already: the first step encodes them with the scale after them.
    """
    if row.generator is not None:
        raise PlanError(
            f"{row.generator.plugin} replaces the generation loop, so {row.name} has no plan; `varbench run` measures it"
        )
    step_policy = row.steps or _full(EveryScale(model))
    backbones = {MAIN: model, **step_policy.policy.backbones}
    backbones.update((name, spec) for name, spec in (loaded or {}).items() if name in backbones)
    specs = _checked_steps(model, step_policy.every(step_policy.policy.steps), backbones, step_policy.plugin, given)
    branches = _branches(model, specs, row.guidance)
    strengths = _strengths(model, specs, branches, row.guidance)
    branches = _live_branches(specs, branches, strengths)
    shared = _shared(model, specs, branches, row.guidance)
    layers = _layers(model, specs, backbones, row.depth)
    work = _token_work(model, specs, layers, row.tokens)
    work = with_widths(model, specs, layers, work, row.width)
    caches = Caches(
        model=model, backbones=backbones, specs=specs, layers=layers, work=work, row=row, accounting=accounting
    )
    _refuse_picks_where_shared(model, specs, shared, work, row)
    uses = caches.uses()
    used = {spec.backbone for spec in specs}
    work = _live_memories(specs, layers, work)
    steps = []
    for index, spec in enumerate(specs):
        calls = tuple(
            LayerCall(
                layer=layer,
                slot=slot,
                attention=work[index, place][0],
                ffn=work[index, place][1],
                cache=uses.get((index, place), ()),
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
                strength=strengths[index],
                mask="full" if len(spec.scales) == 1 else "block_causal",
                calls=calls,
                drops_backbone=bool(later) and spec.backbone not in later,
                shares=shared[index],
            )
        )
    form = caches.stored if isinstance(caches.stored, StoredForm) else None
    plan = Plan(
        name=row.name,
        model=model,
        backbones=tuple((name, spec) for name, spec in backbones.items() if name in used),
        accounting=accounting,
        cache_dtype=caches.stored if isinstance(caches.stored, str) else None,
        cache_form=None if form is None else (form.bits, form.extra_bytes),
        transforms=tuple(
            Transform(part=owned.part, backbone=owned.backbone, changes=tuple(owned.policy.changes.items()))
            for owned in row.transforms
            if owned.backbone in used
        ),
        steps=tuple(steps),
        choosing=choosing(work, row.width),
        own=own_stored(row.width),
    )
    if row.decision is None:
        return plan
    return with_decision(plan, row, partial(compile_plan, model, accounting=accounting, loaded=loaded))


def _full(policy: Policy) -> Owned[Policy]:
    return Owned(plugin="the full model", policy=policy)


def _checked_steps(
    model: ModelSpec, specs: Sequence[StepSpec], backbones: dict[str, ModelSpec], plugin: str, given: int
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
    drawn = set(range(given))
    encoded: dict[str, set[int]] = {}
    for number, spec in enumerate(specs, 1):
        where = f"{plugin}: step {number}"
        if not isinstance(spec, StepSpec) or not all(isinstance(scale, int) for scale in spec.scales):
            raise PlanError(f"{where} is {spec!r}; give a StepSpec(scales=...) of the scales' numbers")
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
        if number == 1 and spec.scales != tuple(range(given + 1)):
            raise PlanError(f"{where} must encode the first scale alone, not {spec.scales}")
        before = encoded.setdefault(spec.backbone, set())
        stale = sorted(scale for scale in before - {*spec.scales} if scale > spec.scales[0])
        if stale:
            raise PlanError(
                f"{where} encodes {model.scale_name(spec.scales[0])} again on backbone {spec.backbone!r}, but not "
                f"{model.scale_name(stale[0])}, whose tokens have attended to it; encode again all from there on"
            )
        unknown = [scale for scale in spec.scales[:-1] if scale not in drawn]
        if unknown:
            raise PlanError(f"{where} encodes {model.scale_name(unknown[0])}, whose tokens no step has sampled before")
        sampled = spec.scales[-1]
        before.update(spec.scales)
        drawn.add(sampled)
    return tuple(specs)


def _branches(
    model: ModelSpec, specs: tuple[StepSpec, ...], guidance: Owned[GuidancePolicy] | None
) -> list[Literal[1, 2]]:
    owner = guidance or _full(BothBranches())
    counts: list[Literal[1, 2]] = []
    last: dict[str, int] = {}
    for spec in specs:
        scale = spec.scales[-1]
        name = owner.ask(owner.policy.branches, scale)
        if name not in ("both", "labelled"):
            raise PlanError(
                f"{owner.plugin}: {name!r} branches at {model.scale_name(scale)}; give 'both' or 'labelled'"
            )
        count: Literal[1, 2] = 2 if name == "both" else 1
        if count > last.get(spec.backbone, 2):
            raise PlanError(
                f"{owner.plugin}: the unlabelled branch comes back at {model.scale_name(scale)}, but its keys and "
                "values were released when it stopped; a branch that ended cannot be read again"
            )
        last[spec.backbone] = count
        counts.append(count)
    return counts


def _strengths(
    model: ModelSpec,
    specs: tuple[StepSpec, ...],
    branches: list[Literal[1, 2]],
    guidance: Owned[GuidancePolicy] | None,
) -> list[float]:
    owner = guidance or _full(BothBranches())
    found = []
    for spec, count in zip(specs, branches, strict=True):
        scale = spec.scales[-1]
        given = owner.ask(owner.policy.strength, scale) if count == 2 else 0.0
        if given is None:
            given = scale / (model.scales - 1)
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
            raise PlanError(
                f"{owner.plugin}: a guidance strength of {given!r} at {model.scale_name(scale)}; give a share of the run's "
                "guidance, 0 or more, or None for the official ramp"
            )
        found.append(float(given))
    return found


def _shared(
    model: ModelSpec,
    specs: tuple[StepSpec, ...],
    branches: list[Literal[1, 2]],
    guidance: Owned[GuidancePolicy] | None,
) -> list[bool]:
    """Where the labelled branch's attention is used for both."""
    owner = guidance or _full(BothBranches())
    found = []
    sharing: set[str] = set()
    for spec, count in zip(specs, branches, strict=True):
        scale = spec.scales[-1]
        shares = count == 2 and owner.agrees(owner.policy.shares, scale)
        if count == 2 and not shares and spec.backbone in sharing:
            raise PlanError(
                f"{owner.plugin}: the unlabelled branch attends by itself again at {model.scale_name(scale)}, but its keys "
                "and values were released when attention was shared before"
            )
        if shares:
            sharing.add(spec.backbone)
        found.append(shares)
    return found


def _refuse_picks_where_shared(
    model: ModelSpec, specs: tuple[StepSpec, ...], shared: list[bool], work: SubLayersOf, row: RowPolicies
) -> None:
    for (index, _), (attention, _) in work.items():
        if shared[index] and attention.picked and row.guidance is not None and row.tokens is not None:
            raise PlanError(
                f"{row.guidance.plugin} shares attention at {model.scale_name(specs[index].scales[-1])}, and {row.tokens.plugin} "
                "picks the tokens that attend; that is not supported"
            )


def _live_branches(
    specs: tuple[StepSpec, ...], branches: list[Literal[1, 2]], strengths: list[float]
) -> list[Literal[1, 2]]:
    """The unlabelled branch runs for as long as its logits, or later ones of its backbone, are used."""
    live: list[Literal[1, 2]] = [1] * len(specs)
    wanted: set[str] = set()
    for index in reversed(range(len(specs))):
        if strengths[index]:
            wanted.add(specs[index].backbone)
        if specs[index].backbone in wanted:
            live[index] = branches[index]
    return live


def _layers(
    model: ModelSpec,
    specs: tuple[StepSpec, ...],
    backbones: dict[str, ModelSpec],
    depth: Owned[DepthPolicy] | None,
) -> list[list[tuple[int, int]]]:
    """For each step, (layer, slot) of each call in order."""
    owner = depth or _full(FullDepth(model, backbones))
    calls = []
    for spec in specs:
        where = f"{owner.plugin}: {model.scale_name(spec.scales[-1])}"
        seen: Counter[int] = Counter()
        step = []
        layers, scale, backbone = owner.policy.layers, spec.scales[-1], spec.backbone
        for given in owner.every(layers, scale, backbone):
            layer = owner.whole(given, layers, scale, backbone)
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


def _token_work(
    model: ModelSpec,
    specs: tuple[StepSpec, ...],
    layers: list[list[tuple[int, int]]],
    tokens: Owned[TokenPolicy] | None,
) -> SubLayersOf:
    """Attention and FFN of each (step, call)."""
    work: SubLayersOf = {}
    for index, spec in enumerate(specs):
        available = sum(model.tokens[scale] for scale in spec.scales)
        for place, (layer, _) in enumerate(layers[index]):
            if tokens is None:
                work[index, place] = (SubLayer(tokens=available), SubLayer(tokens=available))
                continue
            names: tuple[SubLayerName, SubLayerName] = ("attention", "ffn")
            first, second = (_sub_layer(model, spec, layer, name, available, tokens) for name in names)
            work[index, place] = (first, _shared_places(model, spec, layer, first, second, tokens))
    return work


def _shared_places(
    model: ModelSpec, spec: StepSpec, layer: int, attention: SubLayer, ffn: SubLayer, tokens: Owned[TokenPolicy]
) -> SubLayer:
    """The FFN, whose tokens may be those that attention computes."""
    shares = tokens.agrees(tokens.policy.shares_places, layer, spec.scales[-1])
    if not shares or not (attention.picked or ffn.picked):
        return ffn
    if not attention.picked or not ffn.picked or attention.tokens != ffn.tokens:
        raise PlanError(
            f"{tokens.plugin}: the FFN of layer {layer} at {model.scale_name(spec.scales[-1])} is to compute the tokens that attention "
            f"computes, but picks {ffn.tokens * ffn.picked} where attention picks {attention.tokens * attention.picked}"
        )
    return replace(ffn, shared=True)


def _sub_layer(
    model: ModelSpec, spec: StepSpec, layer: int, name: SubLayerName, available: int, tokens: Owned[TokenPolicy]
) -> SubLayer:
    scale, policy = spec.scales[-1], tokens.policy
    count = tokens.count(policy.tokens, layer, scale, name)
    remembered = tokens.agrees(policy.remembers, layer, scale, name)
    noted = tokens.whole(tokens.ask(policy.notes, layer, scale, name), policy.notes, layer, scale, name)
    where = f"{tokens.plugin}: {name} of layer {layer} at {model.scale_name(scale)}"
    if count == 0:
        if remembered or noted:
            raise PlanError(f"{where} is left out, so that there is no output to remember or to note anything of")
        return SubLayer(tokens=0)
    if noted < 0:
        raise PlanError(f"{where} notes {noted} numbers; give 0 or more for each row")
    if count is not None and len(spec.scales) > 1:
        raise PlanError(f"{where} picks tokens in a step that encodes {len(spec.scales)} scales; that is not supported")
    if count is not None and not 1 <= count <= available:
        raise PlanError(f"{where} computes {count} tokens of {available}; give 0 to {available}")
    if count is None and not noted:
        return SubLayer(tokens=available, remembered=remembered)
    flops = tokens.whole(tokens.ask(policy.picking_flops, layer, scale, name), policy.picking_flops, layer, scale, name)
    if flops < 0:
        raise PlanError(f"{where} takes {flops} FLOPs to pick tokens; give 0 or more for each row")
    work = SubLayer(tokens=available, remembered=remembered, picking=flops, noted=noted)
    return work if count is None else replace(work, tokens=count, picked=True)


def _live_memories(specs: tuple[StepSpec, ...], layers: list[list[tuple[int, int]]], work: SubLayersOf) -> SubLayersOf:
    """Outputs are remembered, and policies note, only where a later call of the slot picks and fills in."""
    live = dict(work)
    for which in (0, 1):
        wanted: dict[SlotKey, bool] = {}
        picks: set[SlotKey] = set()
        for index in reversed(range(len(specs))):
            for place, (layer, slot) in enumerate(layers[index]):
                key = SlotKey(specs[index].backbone, layer, slot)
                sub = live[index, place][which]
                kept = replace(sub, remembered=sub.remembered and wanted.get(key, False))
                if key not in picks:
                    kept = replace(kept, noted=0, picking=sub.picking if sub.picked else 0)
                if sub.remembered:
                    wanted[key] = False
                if sub.picked:
                    wanted[key] = True
                    picks.add(key)
                pair = list(live[index, place])
                pair[which] = kept
                live[index, place] = (pair[0], pair[1])
    return live
