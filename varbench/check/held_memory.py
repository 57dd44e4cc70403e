"""Promises about memory: what is held between steps is what is reported, and all of it is let go."""

from __future__ import annotations

from collections.abc import Iterator

from varbench.check.subject import LABELS, Subject

TENSORS_SLACK = 512
"""Bytes of tensors that may be held beyond the report: less than one layer's keys of one scale."""
PYTHON_SLACK = 32 * 1024
"""Bytes of Python objects that may come and go for other reasons."""


def state_bytes_reachable(subject: Subject) -> Iterator[str]:
    """Bytes alive at each step's end are those that the trace reports: no method holds state of its own on the side."""
    plain, own = subject.plain_memory.held, subject.memory.held
    for number, (mine, its) in enumerate(zip(own.storages, plain.storages, strict=True), 1):
        if mine > its + TENSORS_SLACK:
            reported = subject.first.trace.state_after[number - 1]
            yield (
                f"after step {number} of {len(own.storages)} it holds {mine - its} bytes of tensors beside the "
                f"{reported} bytes of state that are reported"
            )
            break
    for number, (mine, its) in enumerate(zip(own.python, plain.python, strict=True), 1):
        if mine > its + PYTHON_SLACK:
            yield f"after step {number} of {len(own.python)} it holds {mine - its} bytes of Python or numpy objects that nothing reports"
            break
    if own.written > plain.written:
        yield f"it wrote into {own.written - plain.written} bytes of tensors that are older than the generation and outlive it"
    changed, _ = subject.buffers
    if changed and not own.written:
        yield f"buffers that are older than the generation and outlive it changed while images were made: {', '.join(changed[:3])}"
    for what in sorted(set(own.reached_out) - set(plain.reached_out)):
        yield f"while images were made, it {what}: state belongs to the engine"
    if own.sent > plain.sent:
        yield f"while images were made, it wrote {own.sent - plain.sent} bytes to a file, a pipe or the like: state belongs to the engine"


def released_memory_freed(subject: Subject) -> Iterator[str]:
    """Once a generation's result is let go, nothing of it stays in memory."""
    _ = subject.first
    plain, own = subject.plain_memory.held, subject.memory.held
    if own.storages_at_end > plain.storages_at_end + TENSORS_SLACK:
        yield (
            f"{own.storages_at_end - plain.storages_at_end} bytes of tensors of a finished generation of {len(LABELS)} images "
            "are still held"
        )
    _, new = subject.buffers
    if new > TENSORS_SLACK and own.storages_at_end <= plain.storages_at_end + TENSORS_SLACK:
        yield f"{new} bytes of tensors and arrays of a finished generation are still held, which were not when it was watched"
    if own.python_at_end > plain.python_at_end + PYTHON_SLACK:
        yield f"{own.python_at_end - plain.python_at_end} bytes of Python or numpy objects of a finished generation are still held"
