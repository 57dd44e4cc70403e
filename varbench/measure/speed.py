"""Times rows in turn, each call beside one of the full model, from outside the process that makes the images. No torch.

What drifts in a process, a core's clock or a neighbour on the machine, falls on both calls of a pair, so the ratio of a
pair is what is kept. A pair in which either call was held up is taken again; that is told from what the system says of
the process's threads (`measure.strain`), never from the time itself, which would cut off the slow end of what is measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from varbench.base import stats
from varbench.measure.calls import Request, Traced
from varbench.measure.overseer import Overseer, Oversight
from varbench.measure.pairs import MILD, AskOne, Call, Pair, PairsTaken, ReadStrain, time_call
from varbench.measure.strain import STARVED, STEADY
from varbench.record.failure import RowError

CALLS_AGAIN = 4
"""Times that one call of a pair is made again, where quiet moments come."""

MOST_RETAKEN = 2
"""Pairs are taken again until this many times as many as were asked for were held up and the budget is spent; then the least
delayed are kept."""

MOST_SPENT = 4
"""So many times the budget may be spent on quiet pairs; not more, however few they are."""

ALONE = ""
"""The name that calls of the full model in a process of its own are counted under: no row's."""

TOO_FAST = 0.7
"""Of a fresh call's time: a call that repeats an earlier one and takes less was looked up."""

FRESH_AGAIN = 3
"""Fresh calls that are made next to an equal one that seems too fast: those before may all have been held up."""

CYCLES = 3
"""Turns in which a row's fewest pairs are taken, so that what passes over the machine meets every row alike."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A process that holds the full model and no other plugin."""

    ask: AskOne
    strain: ReadStrain
    begin: Callable[[], bool] = lambda: False
    """Waits until it is loaded and warm. Whether the device's memory does not hold both: then it is set up for each call anew,
    and gives all back."""


@dataclass(frozen=True, kw_only=True)
class SpeedRound:
    """What one child showed of one row's speed."""

    first_call: float
    second_call: float | None
    """Of the same shapes, where something may be compiled: that is what the first took beyond it."""
    throughput: tuple[Pair, ...]
    latency: tuple[Pair, ...] = ()
    alone: dict[str, tuple[Pair, ...]] = field(default_factory=dict)
    """By regime, calls of the full model in a process that holds no other plugin, each with its neighbour beside the rows."""
    discarded: int = 0
    """Calls and pairs that were taken again since a call was held up."""
    identical: float | None = None
    """Seconds of a call that repeats an earlier one to the letter, as a share of the fastest fresh call's."""
    changed: tuple[str, ...] = ()
    """Global state that the row's calls changed."""
    traces: tuple[Traced, ...] = ()
    """Of the row's calls, and of the full model's in its process."""
    oversight: Oversight | None = None
    """What was seen of the calls from outside, and how they were drawn."""
    board: tuple[str, ...] = ()
    """Why the GPU was not what its name says, or not alone, while this was timed."""
    unseen: str | None = None
    """What of the GPU could not be seen meanwhile."""

    def pairs(self, regime: str) -> tuple[Pair, ...]:
        return self.throughput if regime == "throughput" else self.latency


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much is timed: of every row and regime at least `pairs`, and more until they are precise or `budget` is spent."""

    batch: int
    pairs: int
    error: Callable[[str], float]
    """Standard error of a row's log ratio within this process that is small enough; see `error_within`."""
    budget: float
    """Seconds of calls for a row, beyond which only its fewest pairs are taken."""


def error_within(precision: float, *, processes: int) -> float:
    """The standard error within a process that lets an interval over so many be `precision` wide, either way.

    Half of the variance is left to what differs between processes. One process has its pairs only, and many of them.
    """
    if processes == 1:
        return precision / 2
    return precision * math.sqrt(processes / 2) / stats.student(processes - 1)


def time_rows(
    ask: AskOne,
    rows: Sequence[str],
    *,
    full: str | None,
    pace: Pace,
    overseer: Overseer,
    strain: ReadStrain,
    failed: Callable[[str, RowError], None],
    at: Callable[[str], None] = lambda row: None,
    settle: Callable[[], bool] = lambda: True,
    alone: Alone | None = None,
    used: Callable[[], float | None] = lambda: None,
) -> dict[str, SpeedRound]:
    """One round of rows that share a process. A row that fails is told to `failed` and leaves; the others go on.

    The overseer draws what is asked, `at` hears whose turn it is, and `settle` waits until the machine is fit for a call, where
    it was not for the latest one, and says whether it ever is. Some calls of the full model are followed by the same call
    `alone`, which shows whether it was slowed; and between calls the process must not have `used` processors.
    """
    session = _Session(
        ask=ask,
        full=full,
        pace=pace,
        overseer=overseer,
        strain=strain,
        failed=failed,
        at=at,
        settle=settle,
        alone=alone,
        used=used,
    )
    warmed = {} if full is None else {full: session.warm(full)}
    first: dict[str, tuple[float, float | None]] = {}
    for row in rows:
        with session.turn(row):
            first[row] = warmed.get(row) or session.warm(row)
            session.alive.add(row)
    batches = {"throughput": pace.batch, **({"latency": 1} if pace.batch > 1 else {})}
    for cycle in count():
        lacking = [session.lacking(rows, regime) for regime in batches]
        if not any(lacking):
            break
        for (regime, batch), some in zip(batches.items(), lacking, strict=True):
            session.cycle(some if cycle % 2 == 0 else some[::-1], regime, batch)
    return {row: session.round(row, *first[row]) for row in first if row in session.alive}


@dataclass(kw_only=True)
class _Session:
    ask: AskOne
    full: str | None
    pace: Pace
    overseer: Overseer
    strain: ReadStrain
    failed: Callable[[str, RowError], None]
    at: Callable[[str], None]
    settle: Callable[[], bool]
    alone: Alone | None
    used: Callable[[], float | None]
    alive: set[str] = field(default_factory=set)
    taken: dict[tuple[str, str], PairsTaken] = field(default_factory=dict)
    changed: dict[str, set[str]] = field(default_factory=dict)
    traces: set[Traced] = field(default_factory=set)
    quiet_share: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    waited: dict[tuple[bool, int], list[float]] = field(default_factory=dict)
    """Shares of their time that calls of either process, the one alone or the rows', waited for a processor, by batch."""
    calm: bool = False
    """Whether the latest call of a pair was not held up."""
    last: dict[tuple[str, int], Request] = field(default_factory=dict)
    """The latest call of a row and a batch."""

    @contextlib.contextmanager
    def turn(self, row: str) -> Iterator[None]:
        """One row's turn. What it raises is its own end and no other's."""
        try:
            yield
        except RowError as error:
            self.alive.discard(row)
            self.failed(row, error)

    def call(self, row: str, batch: int) -> Call:
        request = self.last[row, batch] = self.overseer.draw(row, batch)
        return self.asked(request)

    def asked(self, request: Request) -> Call:
        row = request.row
        self.at(row)
        before = self.used()
        call, reply = time_call(self.ask, self.strain, request)
        self.overseer.note(request, reply, before=before, after=self.used())
        self.changed.setdefault(row, set()).update(reply.changed)
        self.traces.add(reply.traced(request))
        return call

    def asked_alone(self, request: Request) -> Call:
        assert self.alone is not None
        tight = self.alone.begin()
        # What it had in caches the rows have taken.
        self.alone.ask(request if tight else replace(request, labels=request.labels[:1]))
        return time_call(self.alone.ask, self.alone.strain, replace(request, release=tight))[0]

    def warm(self, row: str) -> tuple[float, float | None]:
        """The very shapes that are timed, both regimes; the first call of all is a figure of its own."""
        times = self.call(row, self.pace.batch).times
        if self.pace.batch > 1:
            self.call(row, 1)
        again = [self.call(row, self.pace.batch).times.end_to_end for _ in range(self.overseer.warm - 1)]
        return times.set_up + times.end_to_end, again[0] if again else None

    def lacking(self, rows: Sequence[str], regime: str) -> list[str]:
        return [row for row in rows if row in self.alive and not self._enough(row, regime)]

    def cycle(self, rows: list[str], regime: str, batch: int) -> None:
        """A turn of every row. Two rows share the full model's call between them."""
        for place in range(0, len(rows), 2):
            for _ in range(-(-self.pace.pairs // CYCLES)):
                if some := self.lacking(rows[place : place + 2], regime):
                    self._pairs(some, regime, batch)

    def _enough(self, row: str, regime: str) -> bool:
        taken = self._so_far(row, regime)
        total = sum(found.seconds for (name, _), found in self.taken.items() if name == row)
        spent = total >= self.pace.budget
        if len(taken.good) < self.pace.pairs:
            if spent and taken.tried >= self.pace.pairs:
                lacking = taken.kept(self.pace.pairs)[len(taken.good) :]
                if all(pair.delayed <= MILD for pair in lacking):
                    return True
            held_up = len(taken.strained) >= MOST_RETAKEN * self.pace.pairs
            too_long = taken.tried >= self.pace.pairs and 0 < MOST_SPENT * self.pace.budget <= total
            return (spent and held_up) or too_long
        return spent or taken.error() <= self.pace.error(row)

    def _so_far(self, row: str, regime: str) -> PairsTaken:
        return self.taken.setdefault((row, regime), PairsTaken())

    def _pairs(self, rows: list[str], regime: str, batch: int) -> None:
        """Row, full model, row: the one in the middle is the neighbour of both. Each row comes before it in every other pair."""
        ahead = {row: 2 * self._so_far(row, regime).led - self._so_far(row, regime).tried for row in rows}
        rows = sorted(rows, key=ahead.__getitem__)
        before = 1 if len(rows) == 2 or ahead[rows[0]] <= 0 else 0
        calls: dict[str, tuple[Call, bool]] = {}
        beside: Call | None = None
        beside_quiet = True
        for place, row in enumerate([*rows, None]):
            if place == before and self.full is not None:
                told = [self._so_far(name, regime) for name in rows]
                beside, beside_quiet = self._quiet_call(self.full, batch, told=told)
            if row is not None:
                with self.turn(row):
                    calls[row] = self._quiet_call(row, batch, told=[self._so_far(row, regime)])
        for row, (call, quiet) in calls.items():
            taken = self._so_far(row, regime)
            taken.led += row in rows[:before]
            (taken.good if quiet and beside_quiet else taken.strained).append(Pair(row=call, full=beside))
        if beside is not None:
            self._hold_against_alone(regime, batch, beside, beside_quiet)

    def _hold_against_alone(self, regime: str, batch: int, beside: Call, beside_quiet: bool) -> None:
        """Repeats the full model's call in the process that holds no other plugin, if it is one of those that are to be.

        It is not done between calls that are neighbours: the one after it would find its caches taken.
        """
        taken, most = self._so_far(ALONE, regime), MOST_RETAKEN * self.pace.pairs
        if (
            self.alone is None
            or len(taken.good) >= self.pace.pairs
            or taken.tried >= most
            or not self.overseer.is_repeated()
        ):
            return
        assert self.full is not None
        try:
            request = self.last[self.full, batch]
            call, quiet = self._quiet_call(ALONE, batch, told=[taken], ask=partial(self.asked_alone, request))
        except RowError:
            self.alone = None
            return
        (taken.good if quiet and beside_quiet else taken.strained).append(Pair(row=call, full=beside))
        self.call(self.full, 1)  # the next row would pay for the caches that the other process took

    def _quiet_call(
        self, name: str, batch: int, *, told: list[PairsTaken], ask: Callable[[], Call] | None = None
    ) -> tuple[Call, bool]:
        """A call that was not held up, and True; where there is none after a few, the least delayed."""
        ask = ask or partial(self.call, name, batch)
        found: list[Call] = []
        while True:
            # Where the latest call was let alone, so is the next one, more often than not.
            hopeful = self.calm or self.settle()
            found.append(self._held_against_usual(name, batch, ask()))
            for taken in told:
                taken.seconds += found[-1].times.end_to_end
            # The full model alone is asked whether it is clearly faster: no figure rests on its seconds.
            self.calm = found[-1].stalled <= (MILD if name == ALONE else 0.0)
            if self.calm:
                return found[-1], True
            least = min(found, key=lambda call: call.delayed)
            spent = all(taken.seconds >= self.pace.budget for taken in told)
            if not hopeful or (spent and least.delayed <= MILD) or len(found) > CALLS_AGAIN:
                return least, False
            for taken in told:
                taken.again += 1

    def _held_against_usual(self, name: str, batch: int, call: Call) -> Call:
        """The call with how much less its threads ran than in quiet ones, of which it is the next if it was quiet itself, and with
        how long calls wait anyway."""
        if call.strain is None:
            return call
        share = call.strain.cpu_seconds / call.times.end_to_end
        waited = self.waited.setdefault((name == ALONE, batch), [])
        call = replace(call, steady=min(STEADY, stats.median(waited)) if len(waited) >= 3 else 0.0)
        waited.append(call.held_up)
        quiet = self.quiet_share.setdefault((name, batch), [])
        usual = stats.median(quiet) if len(quiet) >= 3 else 0.0
        if share < STARVED * usual:
            return replace(call, starved=1 - share / usual)
        if not call.stalled:
            quiet.append(share)
        return call

    def round(self, row: str, first: float, second: float | None) -> SpeedRound:
        wanted = self.pace.pairs
        kept = {regime: self.taken[row, regime].kept(wanted) for name, regime in self.taken if name == row}
        taken = [self.taken[row, regime] for regime in kept]
        return SpeedRound(
            first_call=first,
            second_call=second,
            throughput=kept["throughput"],
            latency=kept.get("latency", ()),
            alone={regime: found.kept(wanted) for (name, regime), found in self.taken.items() if name == ALONE},
            discarded=sum(one.tried + one.again for one in taken) - sum(map(len, kept.values())),
            identical=self._identical(row, kept["throughput"]),
            changed=tuple(sorted(self.changed.get(row, ()))),
            traces=tuple(sorted(one for one in self.traces if one.row in (row, self.full))),
        )

    def _identical(self, row: str, fresh: Sequence[Pair]) -> float | None:
        """Against the fastest fresh call: what holds a call up can only make a row look more honest than it is."""
        with self.turn(row):
            batch = self.pace.batch
            again = partial(self.asked, self.last[row, batch])
            same = self._quiet_call(row, batch, told=[PairsTaken()], ask=again)[0].times.end_to_end
            least = min(pair.row.times.end_to_end for pair in fresh)
            for _ in range(FRESH_AGAIN):
                if same >= TOO_FAST * least:
                    break
                call, _ = self._quiet_call(row, batch, told=[PairsTaken()])
                least = min(least, call.times.end_to_end)
            return same / least
        return None
