"""The way from a child to its parent: JSON, line by line, on a pipe.

`hello` says who measures and with which weights; `at` names the row that runs from now on, so that the parent knows whom a
crash or a silence belongs to; `result` and `error` end a row; `done` ends the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from varbench.record import Status
from varbench.run.reasons import Failure, of_exception


class Channel:
    """The way to the parent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_inheritable(fd, False)  # what a plugin starts must not hold the pipe open
        self._last = 0.0

    def say(self, event: str, **content: Any) -> None:
        line = json.dumps({"event": event, **content}, allow_nan=False).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]
        self._last = time.monotonic()

    def at(self, row: str) -> None:
        self.say("at", row=row)

    def alive(self, **content: Any) -> None:
        """A sign of life with how far it is, not more often than twice a second."""
        if time.monotonic() - self._last > 0.5:
            self.say("progress", **content)

    def result(self, row: str, **content: Any) -> None:
        self.say("result", row=row, **content)

    def error(self, row: str | None, failure: Failure) -> None:
        self.say("error", row=row, status=failure.status, reason=failure.reason, traceback=failure.traceback)

    @contextlib.contextmanager
    def row(self, row: str) -> Iterator[None]:
        """One row's turn. What it raises is its own end and no other's, save for lost memory, which ends the child."""
        self.at(row)
        try:
            yield
        except (Exception, SystemExit) as error:
            failure = of_exception(error)
            self.error(row, failure)
            if failure.status in (Status.OUT_OF_MEMORY_HOST, Status.OUT_OF_MEMORY_DEVICE):
                raise EndOfChild from error


class EndOfChild(Exception):
    """The process is not fit for another row; the parent starts a new one for those that are left."""
