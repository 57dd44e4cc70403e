"""A look at one row: memory of a call, and what equal calls give away. Asked of a subject, judged here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from varbench.measure import honesty
from varbench.measure.calls import Outside, Reply, Request
from varbench.measure.speed import balanced_labels
from varbench.run.findings import Looks
from varbench.run.prepare import Run

SMALL_BATCH = 8
"""Images of the calls that are looked into step by step."""

Ask = Callable[[Request], Any]


def outside_of(ask: Ask, row: str, run: Run, *, seed: int) -> Reply:
    labels = balanced_labels(min(run.options.batch, SMALL_BATCH), run.model.classes)
    reply = ask(Request(row=row, labels=labels, seed=seed, look="outside"))
    assert isinstance(reply, Reply)
    return reply


def look_at(ask: Ask, row: str, run: Run, *, full: Outside | None) -> Looks:
    """Memory at the measured batch; three small calls, two of them equal; on a GPU the largest batch and energy."""
    options, seed = run.options, run.options.seed
    labels = balanced_labels(options.batch, run.model.classes)
    memory = ask(Request(row=row, labels=labels, seed=seed, look="memory"))
    assert memory.peaks is not None
    findings: list[str] = []
    plan = run.rows[row].plan
    if plan is not None and memory.trace is not None:
        findings += honesty.against_plan(plan, memory.trace, batch=options.batch, dtype=options.dtype)
    small = [outside_of(ask, row, run, seed=chosen) for chosen in (seed, seed, seed + 1)]
    findings += honesty.across_calls(small, full or _outside(small[1]))
    replies = [memory, *small]
    missing = dict(memory.peaks.missing)
    largest = energy = None
    if options.device != "cpu":
        replies += [ask(Request(row=row, labels=labels, seed=seed, look=look)) for look in ("largest", "energy")]
        largest, energy = replies[-2].largest, replies[-1].energy
        missing |= replies[-1].missing
    return Looks(
        batch=options.batch,
        peaks=memory.peaks,
        trace=memory.trace,
        work=memory.work,
        findings=tuple(dict.fromkeys(findings)),
        changed=tuple(sorted({name for reply in replies for name in reply.changed})),
        largest=largest,
        energy=energy,
        missing=missing,
    )


def _outside(reply: Reply) -> Outside:
    assert reply.outside is not None
    return reply.outside
