"""The full model in a process that holds no other plugin: what denominators are held against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from varbench.measure.calls import Reply, Request, balanced_labels
from varbench.measure.overseer import WARM
from varbench.measure.speed import Alone
from varbench.measure.strain import Reading
from varbench.record.failure import RowError
from varbench.rows import FULL
from varbench.run.children import Child, ChildEndedError
from varbench.run.messages import Job, Ready
from varbench.run.prepare import Run


class Check(Protocol):
    def __call__(self, loaded: Ready, *, asked: Job) -> None: ...


@contextmanager
def full_alone(
    run: Run,
    start: Callable[[Job], Child],
    *,
    check: Check,
    strain: Callable[[Child], Reading | None],
    note: Callable[[str], None],
) -> Iterator[Alone | None]:
    """Such a process, warm; a new one each time, so that what luck it has is not that of many denominators."""
    with contextlib.ExitStack() as stack:
        try:
            job = run.job(task="making", rows=(FULL,))
            child = stack.enter_context(start(job))
            check(child.receive(Ready), asked=job)
            labels = balanced_labels(run.options.batch, run.model.classes)
            for _ in range(WARM):  # as a row's own first calls, which do not count either
                child.make(Request(row=FULL, labels=labels, seed=run.options.seed))
        except (ChildEndedError, RowError) as error:
            note(f"  the full model alone: {error.failure.reason}; no denominator is held against it")
            yield None
            return

        def ask(request: Request) -> Reply:
            try:
                return child.make(request)
            except ChildEndedError as error:  # no row is to blame
                raise RowError(error.failure) from error

        yield Alone(ask=ask, strain=lambda: strain(child))
