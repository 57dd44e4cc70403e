"""Whether what was seen of a row is what its plan says. Judged from data, in a process that runs no plugin. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from varbench.measure.calls import Outside, Reply
from varbench.plan.cost import state_over_time
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace

SMALL = 1 << 18
"""Bytes between steps that nobody has to account for."""


def against_plan(plan: Plan, trace: Trace, *, batch: int, dtype: str) -> list[str]:
    """Where what ran is not what was planned: steps, tokens, cache entries, and bytes of state."""
    found = [
        f"step {place + 1} did not run as planned"
        for place, (planned, ran) in enumerate(zip(plan.steps, trace.steps, strict=False))
        if planned != ran
    ]
    if len(plan.steps) != len(trace.steps):
        found.append(f"{len(trace.steps)} steps ran, and {len(plan.steps)} were planned")
    planned_state = list(state_over_time(plan, batch=batch, dtype=dtype))
    for place, ((peak, after), ran_peak, ran_after) in enumerate(
        zip(planned_state, trace.state_peak, trace.state_after, strict=False)
    ):
        if (peak, after) != (ran_peak, ran_after):
            found.append(
                f"step {place + 1} held {ran_peak:,} bytes of state at its peak and {ran_after:,} after it, and the plan "
                f"has {peak:,} and {after:,}"
            )
    return found


def across_calls(row: Sequence[Reply], full: Outside) -> list[str]:
    """What two equal calls and a further one show that the trace does not: chance, leaks, undeclared state."""
    first, equal, _ = row
    found = []
    if (first.tokens_sha256, first.images_sha256) != (equal.tokens_sha256, equal.images_sha256):
        found.append(f"the same call gave other {'images' if first.tokens_sha256 is None else 'tokens'}")
    seen = [reply.outside for reply in row]
    assert seen[0] and seen[1] and seen[2]
    if (leaked := min(seen[1].left, seen[2].left) - seen[0].left) > 0:
        found.append(f"{leaked:,} bytes more live after further calls: something is not given back")
    if hidden := undeclared(seen[1], full):
        found.append(hidden)
    return found


def undeclared(row: Outside, full: Outside) -> str | None:
    """What lives between steps beyond the row's state, and beyond what the engine holds there for the full model."""
    if not row.after_steps or not full.after_steps:
        return None  # a row that replaces the loop has no steps to look between
    allowance = max(seen - held for seen, held in zip(full.after_steps, full.state, strict=True))
    worst, step = max(
        (seen - held - allowance, step)
        for step, (seen, held) in enumerate(zip(row.after_steps, row.state, strict=True), 1)
    )
    if worst <= max(SMALL, allowance // 4):
        return None
    return f"{worst:,} bytes live after step {step} that the row does not declare as state"
