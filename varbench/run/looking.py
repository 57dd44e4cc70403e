"""Measures a row's memory, and whether equal calls give equal results. The subject answers; what it means is decided here."""

from __future__ import annotations

import math

from varbench.measure import honesty
from varbench.measure.calls import Maker, Request, balanced_labels
from varbench.plan.state import state_over_time
from varbench.plan.steps import Plan
from varbench.run.findings import Looks
from varbench.run.prepare import Run

SMALL_BATCH = 8
"""Images of the calls that are looked into step by step, at least."""

SEEN_WELL = 10
"""Times what nobody has to account for, that a plan's state shall have there: what is hidden beside it is hardly smaller."""


def look_at(ask: Maker, row: str, run: Run) -> Looks:
    """Memory at the measured batch; small calls, two of them equal, one for other images and one
    for two of a class; energy; on a GPU the largest batch."""
    options, seed = run.options, run.options.seed
    labels = balanced_labels(options.batch, run.model.classes)
    memory = ask(Request(row=row, labels=labels, seed=seed, look="memory"))
    assert memory.peaks is not None
    findings: list[str] = []
    plan = run.rows[row].plan
    if plan is not None and memory.trace is not None:
        findings += honesty.against_plan(plan, memory.trace, batch=options.batch, dtype=options.dtype)
    if memory.held is not None and memory.work is not None:
        images = 4 * 3 * options.batch * run.model.image_side**2
        findings += honesty.against_statement(memory.work.state_peak_bytes, held=memory.held, images=images)
    few = balanced_labels(_few(plan, most=options.batch, dtype=options.dtype), run.model.classes)
    small = [ask(Request(row=row, labels=few, seed=chosen, look="outside")) for chosen in (seed, seed, seed + 1)]
    findings += honesty.across_calls(small, plan, batch=len(few), dtype=options.dtype)
    others = ask(Request(row=row, labels=few, seed=seed, first=len(few), look="outside"))
    findings += honesty.across_images(small[0], others)
    two = ask(Request(row=row, labels=(0, 0), seed=seed, look="outside"))
    findings += honesty.within_a_class(two)
    replies = [memory, *small, others, two]
    missing = {**memory.peaks.missing, **memory.missing}
    energy = ask(Request(row=row, labels=labels, seed=seed, look="energy"))
    replies.append(energy)
    missing |= energy.missing
    largest = None
    if options.device != "cpu":
        replies.append(ask(Request(row=row, labels=labels, seed=seed, look="largest")))
        largest = replies[-1].largest
    return Looks(
        batch=options.batch,
        peaks=memory.peaks,
        trace=memory.trace,
        work=memory.work,
        products=memory.products,
        held=memory.held,
        from_bytes=memory.from_bytes,
        kernel=memory.kernel,
        arithmetic=memory.arithmetic,
        findings=tuple(dict.fromkeys(findings)),
        changed=tuple(sorted({name for reply in replies for name in reply.changed})),
        largest=largest,
        energy=energy.energy,
        missing=missing,
    )


def _few(plan: Plan | None, *, most: int, dtype: str) -> int:
    held = 0 if plan is None else max(after for _, after in state_over_time(plan, batch=1, dtype=dtype))
    wanted = math.ceil(SEEN_WELL * honesty.SMALL / held) if held else SMALL_BATCH
    return min(most, max(SMALL_BATCH, wanted))
