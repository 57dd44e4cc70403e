"""Promises about memory: what lives between steps is what the plan says, and all of it is let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from varbench.check.allocations import Held, contents
from varbench.check.subject import (
    LABELS,
    PYTHON_SLACK,
    SEED,
    TENSORS_SLACK,
    GeneratorRow,
    PlannedRow,
    UnderTest,
    growth,
)
from varbench.measure.honesty import against_statement
from varbench.measure.made_storages import held_through_a_step
from varbench.plan.state import beside_state, state_over_time


def state_bytes_reachable(subject: UnderTest) -> Iterator[str]:
    """Bytes of tensors that live at each step's end, whoever holds them, are those of the plan; and nothing is kept elsewhere.
    A generator holds no more for longer than a step than it says."""
    if isinstance(subject, PlannedRow):
        yield from _beyond_plan(subject, subject.held)
    if isinstance(subject, GeneratorRow):
        yield from _beyond_statement(subject)
    for what in sorted(set(subject.held.reached_out)):
        yield f"while images were made, it {what}: what is kept there is seen by nobody"
    if subject.held.sent:
        yield f"while images were made, it wrote {subject.held.sent} bytes to a file, a pipe or the like"


def _beyond_statement(subject: GeneratorRow) -> Iterator[str]:
    images, work = subject.first.images.nbytes, subject.stated
    if work.steps:
        held = held_through_a_step(lambda: subject.make(seed=SEED + 3), steps=work.steps)
        yield from against_statement(work.cache_peak_bytes, held=held, images=images)


def _beyond_plan(subject: PlannedRow, own: Held) -> Iterator[str]:
    plan = subject.plan
    states = state_over_time(plan, batch=len(LABELS), dtype="float32", taken=own.taken)
    beside = beside_state(plan, batch=len(LABELS), dtype="float32", taken=own.taken)
    for number, (live, (_, state), other) in enumerate(zip(own.storages, states, beside, strict=True), 1):
        if abs(live - state - other) > TENSORS_SLACK:
            yield (
                f"after step {number} of {len(own.storages)} there live {live:,} bytes of tensors; the plan has "
                f"{state:,} of state, and the loop needs {other:,}"
            )
            break
    for number, (mine, its) in enumerate(zip(own.python, subject.held_plainly.python, strict=True), 1):
        if mine > its + PYTHON_SLACK:
            yield f"after step {number} of {len(own.python)} it holds {mine - its} bytes of Python or numpy objects that nothing reports"
            break
    if own.written:
        yield f"it wrote into {own.written} bytes of tensors that are older than the generation and outlive it"


def the_same_unwatched(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """Unwatched too, a generation changes no buffer that is older, and keeps none."""
    planned = [subject for subject in subjects if isinstance(subject, PlannedRow)]
    together, new = _buffers(planned, seed=SEED + 2)
    if not together and new <= TENSORS_SLACK:
        return
    found = list(_unwatched(planned))
    if together and not found:
        found = [f"buffers that are older changed while images of all its rows were made: {', '.join(together[:3])}"]
    yield from found


def _unwatched(subjects: Sequence[PlannedRow]) -> Iterator[str]:
    for subject in subjects:
        changed, new = _buffers([subject], seed=SEED + 3)  # the same again would leave a buffer as it is
        if changed:
            yield (
                f"{subject.row.name}: buffers that are older than the generation and outlive it changed while images were "
                f"made: {', '.join(changed[:3])}"
            )
        if new > TENSORS_SLACK:
            yield f"{subject.row.name}: {new} bytes of tensors and arrays of a finished generation are still held"


def _buffers(subjects: Sequence[PlannedRow], *, seed: int) -> tuple[list[str], int]:
    """Kinds of the buffers that one more generation of each changed, and bytes of those that are new after it."""
    # Nothing watches these, so they show what a method does that hides from being watched.
    before = contents()
    for subject in subjects:
        subject.make(seed=seed)
    after = contents()
    changed = [
        type(thing).__name__ for place, (thing, data) in before.items() if place in after and after[place][1] != data
    ]
    new = {place: thing for place, (thing, _) in after.items() if place not in before}
    return changed, sum(thing.nbytes for thing in new.values() if isinstance(thing, (Tensor, np.ndarray)))


def released_memory_freed(subject: UnderTest) -> Iterator[str]:
    """Once a generation's result is let go, nothing of it stays in memory."""
    yield from _left(subject) if isinstance(subject, PlannedRow) else _grown(subject.held)


def _grown(held: Held) -> Iterator[str]:
    tensors, python = growth(held)
    if tensors > TENSORS_SLACK:
        yield f"{tensors} bytes of tensors more are held after every further generation"
    if python > PYTHON_SLACK:
        yield f"{python} bytes of Python or numpy objects more are held after every further generation"


def _left(subject: PlannedRow) -> Iterator[str]:
    own, plain = subject.held, subject.held_plainly
    if own.storages_at_end > TENSORS_SLACK:
        yield f"{own.storages_at_end:,} bytes of tensors of a finished generation of {len(LABELS)} images are still held"
    if own.python_at_end > plain.python_at_end + PYTHON_SLACK:
        yield f"{own.python_at_end - plain.python_at_end} bytes of Python or numpy objects of a finished generation are still held"
