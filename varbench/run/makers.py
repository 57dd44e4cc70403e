"""Several processes of one subject make a row's images: on a CPU the threads of one wait for each other at every operator."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from varbench.measure.calls import Reply, Request
from varbench.measure.environment import cores
from varbench.measure.largest import needed
from varbench.plan.hardware import usable
from varbench.record import Status
from varbench.record.failure import Failure, RowError
from varbench.run.prepare import Run

MOST = 8
"""Processes that make images of one row at the same time."""

_BATCHES = 4
"""That each shall make at least, for what it takes to start it."""

_ROOM = 2
"""How much more memory than its plan's a process shall have for itself."""


class MakingProcess(Protocol):
    """A subject's process."""

    def tell(self, request: Request) -> None: ...

    def reply_to(self, request: Request) -> Reply:
        """The answer to a request that it was told."""

    def forget(self) -> None:
        """The answer to what it was told is not waited for any more."""


def at_once(run: Run, names: Sequence[str]) -> int:
    """Processes that shall make images of these rows: as many as processors, where they have the memory."""
    options, free = run.options, run.available_memory
    plans = [plan for name in names if (plan := run.rows[name].plan) is not None]
    if options.device != "cpu" or free is None or len(plans) < len(names):
        return 1
    each = _ROOM * max(needed(plan, batch=options.batch, dtype=options.dtype) for plan in plans)
    room = usable(free, device=options.device) // each
    return max(1, min(cores(), MOST, options.images // (_BATCHES * options.batch), room))


def threads_of_each(count: int) -> int | None:
    """Of so many processes at once; None where one has all."""
    return None if count == 1 else max(1, cores() // count)


def in_order(
    makers: Sequence[MakingProcess], requests: Iterable[Request], *, taken: Path
) -> Generator[tuple[Request, Reply], None, None]:
    """Replies in the order of the requests. The images of the latest one lie in `taken`, until the next one is asked for.

    A maker has one request at a time, and goes on with its next while its reply is looked at.
    """
    left = iter(requests)
    asked: deque[tuple[MakingProcess, Request]] = deque()

    def tell(maker: MakingProcess) -> None:
        if (request := next(left, None)) is not None:
            maker.tell(request)
            asked.append((maker, request))

    try:
        for maker in makers:
            tell(maker)
        while asked:
            maker, request = asked.popleft()
            reply = maker.reply_to(request)
            assert request.keep is not None and reply.chunk is not None
            try:
                os.replace(request.keep, taken)
            except FileNotFoundError as error:
                reason = "its images do not lie where they were asked for"
                raise RowError(Failure(status=Status.FAILED, reason=reason)) from error
            tell(maker)
            yield request, replace(reply, chunk=replace(reply.chunk, path=str(taken)))
    finally:
        for maker, _ in asked:
            maker.forget()
        taken.unlink(missing_ok=True)
