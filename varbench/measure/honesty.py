"""Compares what was seen of a row with its plan, from data alone, in a process that runs no plugin. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from varbench.measure.calls import Reply
from varbench.plan.decided import WaysTaken, wrong_taking
from varbench.plan.state import beside_state, state_over_time
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace, otherwise_than_planned

SMALL = 1 << 18
"""Bytes between steps that nobody has to account for."""

OF_ITS_NUMBER = "draw the noise of each image from the seed and its own number, `first_image` and those behind it"


def against_plan(plan: Plan, trace: Trace, *, batch: int, dtype: str) -> list[str]:
    """Differences between trace and plan: layers, tokens, cache entries, bytes of state, and ways that it does not have."""
    return list(otherwise_than_planned(plan, trace, batch=batch, dtype=dtype))


def against_statement(stated: int | None, *, held: int, images: int) -> list[str]:
    """Of a row that replaces the loop: it holds no more for longer than a step than it says, but what its images take."""
    if stated is None or held <= stated + images + SMALL:
        return []
    return [f"it states {stated:,} bytes of state, and {held:,} were seen to be held for longer than a step"]


def across_calls(row: Sequence[Reply], plan: Plan | None, *, batch: int, dtype: str) -> list[str]:
    """What only several calls show: results that differ by chance, memory that is never freed, state the plan does not have."""
    first, equal, _ = row
    found = []
    if (first.tokens_sha256, first.images_sha256) != (equal.tokens_sha256, equal.images_sha256):
        found.append(f"the same call gave other {'images' if first.tokens_sha256 is None else 'tokens'}")
    seen = [reply.outside for reply in row]
    assert seen[0] and seen[1] and seen[2]
    if (leaked := min(seen[1].left, seen[2].left) - seen[0].left) > 0:
        found.append(f"{leaked:,} bytes more live after further calls: something is not given back")
    if (back := max(seen[0].left - seen[1].left, seen[1].left - seen[2].left)) > SMALL:
        found.append(f"{back:,} bytes that a call left were given back by the next, whose peak they made lower")
    if plan is not None:
        taken = seen[1].taken
        tensors = undeclared(seen[1].after_steps, plan, batch=batch, dtype=dtype, taken=taken)
        # A first call at a size sets things up; what a further call of the same steps still adds is held.
        further = [one for one in seen[1:] if one is not None and one.taken == taken]
        private = [one.private for one in further if one.private is not None]
        least = tuple(map(min, zip(*private, strict=True)))
        hidden = tensors or (undeclared(least, plan, batch=batch, dtype=dtype, taken=taken) if private else None)
        if hidden:
            found.append(hidden)
    return found


def across_images(first: Reply, others: Reply) -> list[str]:
    """Of one seed and the same classes, but for images of other numbers: with noise of their own they are others."""
    if first.images_sha256 != others.images_sha256:
        return []
    return [f"images of other numbers are the same images: each batch has the same noise, or none; {OF_ITS_NUMBER}"]


def within_a_class(reply: Reply) -> list[str]:
    """Of images of one class in one call, which are others by their noise alone."""
    if not reply.repeated:
        return []
    return [f"two images of one class are the same image: each class has the same noise, or none; {OF_ITS_NUMBER}"]


def undeclared(after_steps: Sequence[int], plan: Plan, *, batch: int, dtype: str, taken: WaysTaken = ()) -> str | None:
    """What lives between steps beyond what the plan has there: state, and what the loop needs beside it."""
    if wrong := wrong_taking(plan, taken, batch=batch):
        return wrong
    states = state_over_time(plan, batch=batch, dtype=dtype, taken=taken)
    beside = beside_state(plan, batch=batch, dtype=dtype, taken=taken)
    planned = [after + other for (_, after), other in zip(states, beside, strict=True)]
    if len(planned) != len(after_steps):
        return f"{len(after_steps)} steps were seen, and the plan has {len(planned)}"
    worst, step = max(
        (live - expected, step) for step, (live, expected) in enumerate(zip(after_steps, planned, strict=True), 1)
    )
    if worst <= SMALL:
        return None
    return f"{worst:,} bytes live after step {step} that the plan does not have"
