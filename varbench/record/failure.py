"""How a row failed, as its record says it."""

from __future__ import annotations

from dataclasses import dataclass

from varbench.record.schema import Status


@dataclass(frozen=True, kw_only=True)
class Failure:
    status: Status
    reason: str
    traceback: str | None = None


class RowError(Exception):
    """A row came to its end in the process that ran it; the process itself is fit for other rows unless it says not."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure
