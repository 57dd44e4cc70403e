"""What is decided by content while a plan runs: the ways that it may take, and what runs of them by how many images."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from varbench.errors import PlanError
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import CacheUse, Decision, LayerCall, Plan, PlannedWay, SlotKey, Step
from varbench.policies import (
    BothBranches,
    EveryScale,
    GuidancePolicy,
    Preview,
    StepPolicy,
    StepSpec,
    Way,
)
from varbench.spec import ModelSpec

WaysTaken = tuple[int, ...]
"""By way, how many images go it; none of a plan without a decision."""


@dataclass(frozen=True)
class Stretch:
    """Steps that some of the images run one after the other."""

    steps: tuple[Step, ...]
    images: int


def stretches(plan: Plan, *, batch: int, taken: WaysTaken) -> tuple[Stretch, tuple[Stretch, ...]]:
    """What all images run together, and then what each way's run, in order. Without a word of it, all go the first way."""
    decision = plan.decision
    if decision is None:
        return Stretch(plan.steps, batch), ()
    counts = taken or alone(plan, 0, batch=batch)
    further = (Stretch(way.steps, images) for way, images in zip(decision.ways, counts, strict=True) if images)
    return Stretch(plan.steps[: decision.after + 1], batch), tuple(further)


def is_split(further: Sequence[Stretch]) -> bool:
    """Whether images go different ways."""
    return len(further) > 1


def alone(plan: Plan, way: int, *, batch: int) -> WaysTaken:
    """All images on one way."""
    assert plan.decision is not None
    return tuple(batch if place == way else 0 for place in range(len(plan.decision.ways)))


def wrong_taking(plan: Plan, taken: WaysTaken, *, batch: int) -> str | None:
    """Why images cannot have gone these ways of the plan; None where they can."""
    decision, shown = plan.decision, "/".join(map(str, taken))
    if decision is None:
        return f"{shown} images are said to have gone several ways, and the plan has one" if taken else None
    if len(taken) != len(decision.ways) or min(taken) < 0 or sum(taken) != batch:
        return (
            f"{shown or 'no'} images are said to have gone the plan's {len(decision.ways)} ways, and {batch} were made"
        )
    if decision.together and max(taken) < batch:
        return f"{shown} images are said to have gone the plan's ways, and a batch must go one together"
    return None


def with_decision(plan: Plan, row: RowPolicies, compiled: Callable[[RowPolicies], Plan]) -> Plan:
    """The plan with every way that its row's decision may take, each compiled by itself and joined to what runs before."""
    owned = row.decision
    assert owned is not None
    model, policy = plan.model, owned.policy
    scale = owned.whole(owned.ask(policy.after), policy.after)
    sampled = [step.samples for step in plan.steps]
    if scale not in sampled:
        raise PlanError(f"{owned.plugin}: decides after scale {scale}; the row samples {', '.join(map(str, sampled))}")
    after = sampled.index(scale)
    _refuse_later_models(plan, after, owned.plugin)
    ways = _checked_ways(owned.every(policy.ways), owned.plugin, model, scale)
    found = [PlannedWay(said=_said(ways[0], model), steps=plan.steps[after + 1 :])]
    for way in ways[1:]:
        other = compiled(_reduced(row, way, model))
        steps = _joined(plan, after, other.steps[after + 1 :], owned.plugin)
        found.append(PlannedWay(said=_said(way, model), steps=steps))
    decision = Decision(
        after=after,
        previews=_checked_previews(policy.previews, owned.plugin, model, sampled[: after + 1]),
        together=bool(policy.together),
        ways=tuple(found),
    )
    return replace(plan, decision=decision)


def _refuse_later_models(plan: Plan, after: int, plugin: str) -> None:
    begun = {step.backbone for step in plan.steps[: after + 1]}
    for step in plan.steps[after + 1 :]:
        if step.backbone not in begun or step.scales[0] <= plan.steps[after].samples:
            raise PlanError(
                f"{plugin}: decides after {plan.model.scale_name(plan.steps[after].samples)}, and {step.backbone} begins or "
                "encodes scales again after that; that is not supported"
            )


def _checked_ways(ways: Sequence[Way], plugin: str, model: ModelSpec, scale: int) -> tuple[Way, ...]:
    if len(ways) < 2 or not all(isinstance(way, Way) for way in ways) or ways[0] != Way():
        raise PlanError(
            f"{plugin}: the ways are {ways!r}; give Way(), which goes on as before, and then at least one more"
        )
    for way in ways[1:]:
        given = [number for number in (way.ends, way.labelled) if number is not None]
        for number in given:
            if not scale < operator.index(number) < model.scales:
                raise PlanError(
                    f"{plugin}: {way!r} leaves out from scale {number} on; it is decided after scale {scale}, and "
                    f"{model.name} has scales 0 to {model.scales - 1}"
                )
        if not given or ways.count(way) > 1:
            raise PlanError(f"{plugin}: {way!r} is the way of another one, or leaves nothing out; give each way once")
    return tuple(ways)


def _checked_previews(
    previews: Sequence[Preview], plugin: str, model: ModelSpec, sampled: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    found = []
    for one in previews:
        if not isinstance(one, Preview) or one.scale not in sampled or not 1 <= one.side <= model.sides[-1]:
            raise PlanError(
                f"{plugin}: {one!r} cannot be decoded; give Preview(scale=..., side=...) of scales that were sampled by then, "
                f"{', '.join(map(str, sampled))}, and sides up to {model.sides[-1]}"
            )
        found.append((one.scale, one.side))
    if found != sorted(found):
        raise PlanError(f"{plugin}: previews {previews!r} are not in the order of scales")
    return tuple(found)


class _Cut(StepPolicy):
    """The row's steps up to a scale."""

    def __init__(self, own: StepPolicy, ends: int) -> None:
        self._own, self._ends = own, ends

    @property
    def backbones(self) -> Mapping[str, ModelSpec]:
        return self._own.backbones

    def steps(self) -> Sequence[StepSpec]:
        return [spec for spec in self._own.steps() if spec.scales[-1] < self._ends]


class _LabelledFrom(GuidancePolicy):
    """The row's guidance, without the unlabelled branch from a scale on."""

    def __init__(self, own: GuidancePolicy, first: int) -> None:
        self._own, self._first = own, first

    def branches(self, scale: int) -> Literal["both", "labelled"]:
        return "labelled" if scale >= self._first else self._own.branches(scale)

    def strength(self, scale: int) -> float | None:
        return self._own.strength(scale)

    def shares(self, scale: int) -> bool:
        return self._own.shares(scale)


def _reduced(row: RowPolicies, way: Way, model: ModelSpec) -> RowPolicies:
    """The row as it would be if it always went this way."""
    steps, guidance = row.steps, row.guidance
    if way.ends is not None:
        whole: Owned[StepPolicy] = steps or Owned(plugin="the full model", policy=EveryScale(model))
        steps = Owned(plugin=whole.plugin, policy=_Cut(whole.policy, way.ends))
    if way.labelled is not None:
        both: Owned[GuidancePolicy] = guidance or Owned(plugin="the full model", policy=BothBranches())
        guidance = Owned(plugin=both.plugin, policy=_LabelledFrom(both.policy, way.labelled))
    return replace(row, decision=None, steps=steps, guidance=guidance)


def _joined(plan: Plan, after: int, steps: tuple[Step, ...], plugin: str) -> tuple[Step, ...]:
    """A way's steps, going on with the caches that the steps before have left: they are as large as all ways together need."""
    left: dict[tuple[SlotKey, int], CacheUse] = {}
    for step in plan.steps[: after + 1]:
        for call in step.calls:
            left |= {
                (SlotKey(step.backbone, call.layer, call.slot), group): use for group, use in enumerate(call.cache)
            }
    rooms = {place: use.capacity for place, use in left.items()}
    met: set[tuple[SlotKey, int]] = set()
    joined = []
    for step in steps:
        calls: list[LayerCall] = []
        for call in step.calls:
            uses = []
            for group, use in enumerate(call.cache):
                place = (SlotKey(step.backbone, call.layer, call.slot), group)
                if place not in met and place in left and left[place].kept != use.read:
                    raise PlanError(
                        f"{plugin}: on one of its ways layer {call.layer} reads at {plan.model.scale_name(step.samples)} what "
                        "is not kept for the first one; that is not supported"
                    )
                met.add(place)
                if plan.accounting == "lossless":
                    room = max(use.capacity, rooms.get(place, 0)) if use.kept else 0
                    use, rooms[place] = replace(use, capacity=room), room
                uses.append(use)
            calls.append(replace(call, cache=tuple(uses)))
        joined.append(replace(step, calls=tuple(calls)))
    return tuple(joined)


def _said(way: Way, model: ModelSpec) -> str:
    parts = []
    if way.labelled is not None:
        parts.append(f"labelled branch alone from {_size(model, way.labelled)} on")
    if way.ends is not None:
        parts.append(f"ends before {_size(model, way.ends)}")
    return ", ".join(parts) or "on as before"


def _size(model: ModelSpec, scale: int) -> str:
    return f"{model.sides[scale]}x{model.sides[scale]}"
