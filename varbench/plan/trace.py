"""What a generation did, as counts and bytes that can be seen from its tensors; and what a plan lets foresee of it.

Which entries and tokens were picked is content, and not in here: `varbench check` reads it off the tensors. Which ways images
went is, since what was computed hangs on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from varbench.base.hashing import json_digest
from varbench.plan.decided import WaysTaken, alone, stretches, wrong_taking
from varbench.plan.state import state_over_time
from varbench.plan.steps import Decision, LayerCall, Plan, Step, total
from varbench.plan.widths import at_least


class CacheSeen(NamedTuple):
    """One attention: of all heads, or of one group of them."""

    heads: int
    read: int
    """Entries of earlier steps that it attended to."""
    own: int
    """Entries of its own, beside those."""
    kept: int
    """Entries that stayed in its cache."""
    room: int
    """Entries that the cache had room for then."""
    observed: int = 0
    """Queries whose attention was computed again, to choose by."""
    merged: int = 0
    """Entries that were averaged into those that stayed."""


class CallSeen(NamedTuple):
    backbone: str
    layer: int
    attending: int
    """Rows that entered the attention: of branches that take another's, and where it is left out, none."""
    attention: int
    """Tokens of each of them."""
    ffn: int
    hidden: int
    """Hidden numbers that the FFN made, of all rows and tokens."""
    routed: int
    """Tokens, of all rows, whose experts were chosen by content."""
    estimated: int
    """Tokens, of all rows, whose output was estimated and not computed."""
    masked: bool
    caches: tuple[CacheSeen, ...]
    picked: int = 0
    """Rows whose tokens were picked: for both of them where they share places, for each."""
    filled: tuple[int, int] = (0, 0)
    """Rows whose attention, and rows whose FFN, computed tokens that were picked, and were filled in at the others."""
    noted: tuple[int, int] = (0, 0)
    """Rows of which a policy noted something at the attention, and at the FFN."""


class StepSeen(NamedTuple):
    images: int
    rows: int
    """Images times guidance branches."""
    embedded: int
    """Tokens of each image that were made from features of the map so far."""
    drawn: int
    """Tokens of each image that got logits."""
    calls: tuple[CallSeen, ...]
    state_peak: int
    """Largest bytes of caches and remembered outputs within the step, as long as anybody held their memory."""
    state_after: int
    previewed: tuple[tuple[int, int], ...] = ()
    """Maps that were decoded to decide by, once its tokens were drawn: of how many images, and their side."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    steps: tuple[StepSeen, ...]
    taken: WaysTaken = ()
    """Where something is decided by content, how many images went each way. Those that went one ran their steps together,
    one way after the other."""

    @property
    def digest(self) -> str:
        return json_digest([self.steps, self.taken])

    @property
    def state_after(self) -> tuple[int, ...]:
        return tuple(step.state_after for step in self.steps)

    @property
    def state_peak(self) -> tuple[int, ...]:
        return tuple(step.state_peak for step in self.steps)


def foreseen(plan: Plan, *, batch: int, dtype: str, taken: WaysTaken = ()) -> Trace:
    """The trace that a plan lets expect, once it is known which ways images go; without that, of all on the first."""
    states = state_over_time(plan, batch=batch, dtype=dtype, taken=taken)
    first, further = stretches(plan, batch=batch, taken=taken)
    ran = [(stretch.images, step) for stretch in (first, *further) for step in stretch.steps]
    previews = {} if plan.decision is None else _previews(plan.decision)
    return Trace(
        steps=tuple(
            StepSeen(
                images=images,
                rows=images * step.branches,
                embedded=sum(plan.model.tokens[scale] for scale in step.scales if scale),
                drawn=plan.model.tokens[step.samples],
                calls=tuple(
                    _call(step, call, images=images, hidden=plan.backbone(step.backbone).hidden) for call in step.calls
                ),
                state_peak=peak,
                state_after=after,
                previewed=tuple((batch, side) for side in previews.get(step.samples, ())),
            )
            for (images, step), (peak, after) in zip(ran, states, strict=True)
        ),
        taken=() if plan.decision is None else taken or alone(plan, 0, batch=batch),
    )


def _previews(decision: Decision) -> dict[int, tuple[int, ...]]:
    """Sides of the maps that are decoded, by the scale after which they are."""
    found: dict[int, tuple[int, ...]] = {}
    for scale, side in decision.previews:
        found[scale] = (*found.get(scale, ()), side)
    return found


def _call(step: Step, call: LayerCall, *, images: int, hidden: int) -> CallSeen:
    rows = images * step.branches
    caches = (
        CacheSeen(
            len(use.heads),
            read=total(use.read),
            own=use.own,
            kept=total(use.kept),
            room=use.capacity,
            observed=len(use.observed),
            merged=use.attended - total(use.kept) if use.merged else 0,
        )
        for use in call.cache
    )
    attends, width, entering = call.attention.tokens > 0, call.ffn.width, rows * call.ffn.tokens
    tokens = entering if width is None or width.tokens is None else rows * width.tokens
    return CallSeen(
        backbone=step.backbone,
        layer=call.layer,
        attending=images * step.attending * attends,
        attention=call.attention.tokens,
        ffn=call.ffn.tokens,
        hidden=tokens * (hidden if width is None else hidden // width.experts * width.chosen),
        routed=tokens if width is not None and width.routed else 0,
        estimated=entering - tokens,
        masked=attends and step.mask != "full",
        caches=tuple(caches),
        picked=images * step.attending * call.attention.picked + rows * (call.ffn.picked and not call.ffn.shared),
        filled=(images * step.attending * call.attention.picked, rows * call.ffn.picked),
        noted=(images * step.attending * bool(call.attention.noted), rows * bool(call.ffn.noted)),
    )


def otherwise_than_planned(plan: Plan, trace: Trace, *, batch: int, dtype: str) -> Iterator[str]:
    """Where what was seen is not what the plan lets expect of the ways that images are said to have gone."""
    wrong = wrong_taking(plan, trace.taken, batch=batch)
    if wrong is not None:
        yield wrong
    else:
        most, least = (foreseen(one, batch=batch, dtype=dtype, taken=trace.taken) for one in (plan, at_least(plan)))
        yield from differences(_within(most, least, trace), trace)


def _within(most: Trace, least: Trace, seen: Trace) -> Trace:
    """What was foreseen, with as many hidden numbers as were seen where that lies between the bounds."""
    steps = []
    for step, fewest, ran in zip(most.steps, least.steps, seen.steps, strict=False):
        calls = list(step.calls)
        for place, (call, low, its) in enumerate(zip(step.calls, fewest.calls, ran.calls, strict=False)):
            if low.hidden <= its.hidden <= call.hidden:
                calls[place] = call._replace(hidden=its.hidden)
        steps.append(step._replace(calls=tuple(calls)))
    return replace(most, steps=(*steps, *most.steps[len(steps) :]))


def differences(planned: Trace, seen: Trace) -> Iterator[str]:
    """Where what was seen is not what was foreseen: for each step the first call, and the bytes."""
    if len(seen.steps) != len(planned.steps):
        yield f"{len(seen.steps)} steps ran, and {len(planned.steps)} were planned"
    for number, (plan, ran) in enumerate(zip(planned.steps, seen.steps, strict=False), 1):
        for what in _WORDS:
            if getattr(plan, what) != getattr(ran, what):
                yield f"step {number}: {_WORDS[what]}: {getattr(ran, what):,}, and the plan has {getattr(plan, what):,}"
        if plan.previewed != ran.previewed:
            yield f"step {number} decoded maps {list(ran.previewed)} (images, side), and the plan has {list(plan.previewed)}"
        if len(plan.calls) != len(ran.calls):
            yield f"step {number} ran {len(ran.calls)} layers, and the plan has {len(plan.calls)}"
        for theirs, ours in zip(plan.calls, ran.calls, strict=False):
            if theirs != ours:
                yield f"step {number} ran {_described(ours)}; the plan has {_described(theirs)}"
                break


_WORDS = {
    "images": "images",
    "rows": "images times guidance branches",
    "embedded": "tokens made from the map so far",
    "drawn": "tokens that got logits",
    "state_peak": "bytes of state at the peak",
    "state_after": "bytes of state that stay",
}


def _described(call: CallSeen) -> str:
    caches = " and ".join(
        f"{use.heads} heads that read {use.read} and {use.own} of their own, and keep {use.kept} in room for {use.room}, with "
        f"{use.observed} queries observed and {use.merged} entries merged"
        for use in call.caches
    )
    mask = ", masked" if call.masked else ""
    routed = f" ({call.routed} chose experts)" if call.routed else ""
    routed += f" ({call.estimated} tokens estimated)" if call.estimated else ""
    if call.picked or any(call.filled):
        routed += f" (tokens picked for {call.picked} rows, filled in for {' and '.join(map(str, call.filled))})"
    if any(call.noted):
        routed += f" (noted of {' and '.join(map(str, call.noted))} rows)"
    return (
        f"layer {call.layer} of {call.backbone}{mask}, attention of {call.attending} rows on {call.attention} "
        f"and FFN on {call.ffn} tokens, {call.hidden} hidden numbers{routed}, {caches}"
    )
