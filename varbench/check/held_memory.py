"""Promises about memory: what lives between steps is what the plan says, and all of it is let go."""

from __future__ import annotations

from collections.abc import Iterator

from varbench.check.subject import LABELS, RowUnderTest
from varbench.plan.state import beside_state, state_over_time

TENSORS_SLACK = 256
"""Bytes of tensors that nobody need account for: less than one layer's keys of one scale of one image."""
PYTHON_SLACK = 32 * 1024
"""Bytes of Python objects that may come and go for other reasons."""


def state_bytes_reachable(subject: RowUnderTest) -> Iterator[str]:
    """Bytes of tensors that live at each step's end, whoever holds them, are those of the plan; and nothing is kept elsewhere."""
    plan, own = subject.plan, subject.memory.held
    states = state_over_time(plan, batch=len(LABELS), dtype="float32")
    beside = beside_state(plan, batch=len(LABELS), dtype="float32")
    for number, (live, (_, state), other) in enumerate(zip(own.storages, states, beside, strict=True), 1):
        if abs(live - state - other) > TENSORS_SLACK:
            yield (
                f"after step {number} of {len(own.storages)} there live {live:,} bytes of tensors; the plan has "
                f"{state:,} of state, and the loop needs {other:,}"
            )
            break
    for number, (mine, its) in enumerate(zip(own.python, subject.plain_memory.held.python, strict=True), 1):
        if mine > its + PYTHON_SLACK:
            yield f"after step {number} of {len(own.python)} it holds {mine - its} bytes of Python or numpy objects that nothing reports"
            break
    if own.written:
        yield f"it wrote into {own.written} bytes of tensors that are older than the generation and outlive it"
    changed, _ = subject.buffers
    if changed and not own.written:
        yield f"buffers that are older than the generation and outlive it changed while images were made: {', '.join(changed[:3])}"
    for what in sorted(set(own.reached_out)):
        yield f"while images were made, it {what}: state belongs to the engine"
    if own.sent:
        yield f"while images were made, it wrote {own.sent} bytes to a file, a pipe or the like: state belongs to the engine"


def released_memory_freed(subject: RowUnderTest) -> Iterator[str]:
    """Once a generation's result is let go, nothing of it stays in memory."""
    own = subject.memory.held
    if own.storages_at_end > TENSORS_SLACK:
        yield f"{own.storages_at_end:,} bytes of tensors of a finished generation of {len(LABELS)} images are still held"
    _, new = subject.buffers
    if new > TENSORS_SLACK and own.storages_at_end <= TENSORS_SLACK:
        yield f"{new} bytes of tensors and arrays of a finished generation are still held, which were not when it was watched"
    plain = subject.plain_memory.held
    if own.python_at_end > plain.python_at_end + PYTHON_SLACK:
        yield f"{own.python_at_end - plain.python_at_end} bytes of Python or numpy objects of a finished generation are still held"
