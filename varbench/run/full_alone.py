"""The full model in a process that holds no other plugin: what denominators are held against."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from varbench.measure.calls import Reply, Request, balanced_labels
from varbench.measure.largest import needed
from varbench.measure.speed import Alone
from varbench.measure.strain import Reading
from varbench.plan.hardware import usable
from varbench.record.failure import RowError
from varbench.rows import FULL
from varbench.run.children import Child, ChildEndedError
from varbench.run.messages import Job, Ready
from varbench.run.prepare import Run

KEPT = 1.7
"""What is captured keeps so many times the memory that the plan foresees, or fewer: of d30 the full model kept 22 GiB for 18, and a
process with official accounting, whose cache grows by being copied, 57 for 34."""


class Check(Protocol):
    def __call__(self, loaded: Ready, *, asked: Job) -> None: ...


@contextmanager
def full_alone(
    run: Run,
    names: tuple[str, ...],
    start: Callable[[Job], Child],
    *,
    check: Check,
    strain: Callable[[Child], Reading | None],
    note: Callable[[str], None],
) -> Iterator[Alone | None]:
    """Such a process beside one with rows of these names, or None if it fails; a new one each time, so that what luck it has is not
    that of many denominators. On a GPU it loads while they warm up; processors are wanted by both, and it goes first."""
    job = run.job(task="making", rows=(FULL,))
    with start(job) as child:

        @functools.cache
        def begin() -> bool:
            try:
                check(loaded := child.receive(Ready), asked=job)
                labels = balanced_labels(run.options.batch, run.model.classes)
                tight = not _fit_together(run, names, memory=loaded.environment.device_memory_bytes)
                for call in range(run.warm_calls):  # as a row's own first calls, which do not count either
                    release = tight and call == run.warm_calls - 1
                    child.make(Request(row=FULL, labels=labels, seed=run.options.seed, release=release))
            except (ChildEndedError, RowError) as error:
                note(f"  the full model alone: {error.failure.reason}; no denominator is held against it")
                raise RowError(error.failure) from error
            return tight

        def ask(request: Request) -> Reply:
            try:
                return child.make(request)
            except ChildEndedError as error:  # no row is to blame
                raise RowError(error.failure) from error

        if run.options.device == "cpu":
            try:
                begin()
            except RowError:  # it is said
                yield None
                return
        yield Alone(ask=ask, strain=lambda: strain(child), begin=begin)


def _fit_together(run: Run, names: tuple[str, ...], *, memory: int | None) -> bool:
    """Whether the GPU holds the full model's calls beside those of any of the rows, all being kept as they were captured."""
    options = run.options
    if options.device == "cpu" or memory is None:
        return True
    wanted = {
        name: needed(plan, batch=options.batch, dtype=options.dtype, device=options.device)
        for name in (FULL, *names)
        if (row := run.rows.get(name)) is not None and (plan := row.plan) is not None
    }
    both = wanted.get(FULL, 0) + max(wanted.values(), default=0)
    return KEPT * both <= usable(memory, device=options.device)
