"""Calls that were timed, in pairs of neighbours, and which of them count. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from varbench.base import stats
from varbench.measure.calls import Reply, Request, Times
from varbench.measure.strain import HELD_UP, Reading, Strain

AskOne = Callable[[Request], Reply]
ReadStrain = Callable[[], Reading | None]

MILD = 0.03
"""What is delayed by no larger a share is good enough once the budget is spent: it moves a ratio by less than that."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One timed call."""

    times: Times
    strain: Strain | None
    """None where the system does not tell."""
    seen: float
    """Seconds from the question to the answer, by the judge."""
    sound: bool
    """Whether what its process says fits together, and lies within what the judge saw."""
    starved: float = 0.0
    """The share of its time by which its threads ran less than is usual, where that is clearly less."""
    steady: float = 0.0
    """The share of their time that calls of its process wait anyway."""

    @property
    def outside(self) -> float:
        """Seconds that the judge saw, and that lie outside of what the process states."""
        return self.seen - self.times.end_to_end

    @property
    def told_by(self) -> float:
        """The seconds that a row's speed is told by."""
        return self.times.with_decoder if self.times.transformer is None else self.times.transformer

    @property
    def held_up(self) -> float:
        """The share of its time that it was kept from running."""
        return 0.0 if self.strain is None else self.strain.held_up(self.times.end_to_end)

    @property
    def delayed(self) -> float:
        """The share of its time that it may have lost by waiting or being throttled; 0 of what is next to nothing."""
        return self._lost(beyond=HELD_UP)

    @property
    def stalled(self) -> float:
        """As much, if it is more than calls like it lose anyway: then it is made again."""
        return self._lost(beyond=self.steady + HELD_UP)

    def _lost(self, *, beyond: float) -> float:
        return max(self.held_up, self.starved) if self.held_up > beyond or self.starved else 0.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row's call, and its neighbour in time: a call of the full model's plan on the same weights."""

    row: Call
    full: Call | None
    """None for a row that has no full model in its process."""

    @property
    def held_up(self) -> float:
        return max(call.held_up for call in (self.row, self.full) if call is not None)

    @property
    def delayed(self) -> float:
        return max(call.delayed for call in (self.row, self.full) if call is not None)


@dataclass
class PairsTaken:
    """A row's pairs as they come, in one regime."""

    good: list[Pair] = field(default_factory=list)
    strained: list[Pair] = field(default_factory=list)
    led: int = 0
    """Pairs in which the row's call came before the full model's."""
    seconds: float = 0.0
    """Of all its calls and their neighbours."""
    again: int = 0
    """Calls that were made again, its neighbours' too."""

    @property
    def tried(self) -> int:
        return len(self.good) + len(self.strained)

    def error(self) -> float:
        logs = [math.log(pair.row.told_by / (pair.full.told_by if pair.full else 1.0)) for pair in self.good]
        return stats.within_round(logs).error if len(logs) > 1 else math.inf

    def kept(self, wanted: int) -> tuple[Pair, ...]:
        """The quiet pairs; where they are fewer than wanted, the least delayed of the others too."""
        lacking = max(0, wanted - len(self.good))
        return (*self.good, *sorted(self.strained, key=lambda pair: pair.delayed)[:lacking])


def time_call(ask: AskOne, strain: ReadStrain, request: Request) -> tuple[Call, Reply]:
    before, asked = strain(), time.monotonic()
    reply = ask(request)
    answered, after = time.monotonic(), strain()
    assert reply.marks is not None
    times = Times.between(reply.marks)
    return Call(
        times=times,
        strain=None if before is None or after is None else before.until(after),
        seen=answered - asked,
        sound=_is_sound(times, asked=asked, answered=answered),
    ), reply


def _is_sound(times: Times, *, asked: float, answered: float) -> bool:
    """Columns hold each other, the whole is what lies between start and end, and both lie within the judge's call."""
    close = 1e-3 + 0.02 * times.end_to_end  # events of a GPU keep another clock
    parts = (times.transformer, sum(times.steps) or None, times.loop, times.with_decoder)
    columns = [one for one in parts if one is not None]
    held = all(inner <= outer + close for inner, outer in zip(columns, [*columns[1:], times.end_to_end], strict=True))
    whole = abs(times.ended - times.began - times.end_to_end) <= 1e-6
    return held and whole and asked <= times.began <= times.ended <= answered and min(columns) > 0
