"""How many times as fast as the full model: beside it in the row's own processes, and over all rows of one plan.

Speed and memory do not hang on the values of weights. Rows that run the same plan by the same kernels are therefore one
sample of processes, and each row's own figure is a check on it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from varbench.base import stats
from varbench.base.stats import Ratio
from varbench.measure.strain import HELD_UP
from varbench.record import Record, TimingColumn

_Found = TypeVar("_Found")

_QUESTIONS = 4096
"""Whose answers are kept: of many records each is asked about once."""

WITH_MACHINE = 0.5
"""A speedup may move by this share of what the machine's own speed moves by, both as logarithms. Machines have states that last
for minutes, and a batch of 1 gains less in a fast one: by 0.43 of it was seen (docs/measuring.md)."""

STALLED = 0.05
"""Calls that waited for so much of their time tell how busy the machine was more than how fast a row is: they are left out where
enough others are."""

ENOUGH = 3
"""Processes with a pair of calls that did not stall, for those that did to be left out."""

ALIKE = Ratio(value=1.0, low=1.0, high=1.0, error=0.0, degrees=0)
"""Of what is divided by itself."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A row's speedup over one denominator."""

    ratio: Ratio
    """Over the processes of all rows of its plan."""
    own: Ratio
    """Over its own."""
    processes: int
    """That `ratio` is over."""
    own_processes: int
    left_out: int = 0
    """Pairs of calls of which one stalled, while enough processes had others."""

    @property
    def half_width(self) -> float:
        """Of the interval, as a share: 0.03 is ± 3 %."""
        return math.sqrt(self.ratio.high / self.ratio.low) - 1

    @property
    def held_up(self) -> bool:
        """Whether delays of calls may have moved it."""
        return self.ratio.down + self.ratio.up > 0

    @property
    def apart(self) -> bool:
        """The row's own figure has nothing in common with that of its plan."""
        return self.own.high < self.ratio.low or self.own.low > self.ratio.high


def timing_column(record: Record, column: str, regime: str) -> TimingColumn | None:
    columns = record.timing.columns if record.timing else ()
    return next((found for found in columns if (found.column, found.regime) == (column, regime)), None)


def timed_by(records: Sequence[Record]) -> str:
    """The column that speed is told by: a row that replaces the loop has no transformer to time alone."""
    own = any(timing_column(record, "transformer", "throughput") for record in records)
    return "transformer" if own or not any(record.timing for record in records) else "with_decoder"


def kind_of_work(record: Record) -> tuple[object, ...] | None:
    """Equal for rows whose speed and memory are the same; None where they hang on what a policy does within the loop."""
    plan = record.plan
    if plan is None or plan.picks is not False:
        return None
    return plan.digest, plan.transforms, record.protocol.kernel


_KNOWN: list[dict[Any, Any]] = []


def forget() -> None:
    """Answers, and the records with them: a page is done, and no other has these very records."""
    for known in _KNOWN:
        known.clear()


def _kept(question: Callable[[tuple[Record, ...], str, str], _Found]) -> Callable[[Iterable[Record], str, str], _Found]:
    """Answered once for the same records: those of a plan are asked about for each of its entries, and for each side of a page."""
    known: dict[tuple[object, ...], tuple[tuple[Record, ...], _Found]] = {}
    _KNOWN.append(known)

    def answered(records: Iterable[Record], column: str, regime: str) -> _Found:
        those = tuple(records)
        key = (column, regime, *map(id, those))
        if key not in known:
            if len(known) == _QUESTIONS:
                known.pop(next(iter(known)))
            # With the records themselves: while they are here, nothing else goes by their identities.
            known[key] = those, question(those, column, regime)
        return known[key][1]

    return answered


@_kept
def beside(records: tuple[Record, ...], column: str, regime: str) -> Ratio | None:
    """Against the full model's calls that are neighbours of the rows'. Rows that share a process count as one there.

    What a batch of 1 gains hangs on the state of the machine, which processes of a round share: there the interval is the wider
    one of those over processes and over rounds. Calls that were delayed and count all the same make it longer, by as much as they
    may have moved the medians.
    """
    neighbours = _pairs(records, column, regime).counted
    if not neighbours:
        return None
    if len(neighbours) == 1:
        (rounds,) = neighbours.values()
        every = [log for one in rounds for log in one.logs]
        shift = stats.delayed(every, [delay for one in rounds for delay in one.delays])
        return stats.moved(stats.within_round(every), shift)
    shifts = [stats.mean_shift(one.shift for one in rounds) for rounds in neighbours.values()]
    return stats.moved(_over_processes(neighbours, regime), stats.mean_shift(shifts))


def _over_processes(neighbours: _Neighbours, regime: str) -> Ratio:
    middles = {process: statistics.fmean([one.middle for one in rounds]) for process, rounds in neighbours.items()}
    by_process = stats.over_rounds(list(middles.values()))
    if regime == "throughput":
        return by_process
    rounds: dict[tuple[str, int], list[float]] = {}
    for process, middle in middles.items():
        rounds.setdefault((process.run, process.number), []).append(middle)
    by_round = stats.over_rounds([statistics.fmean(some) for some in rounds.values()])
    return max(by_process, by_round, key=lambda ratio: ratio.width)


def machine(records: Iterable[Record], column: str, regime: str) -> list[float]:
    """How slow the machine was in each process: the logarithm of the full model's seconds beside the rows."""
    neighbours = _pairs(records, column, regime).counted.values()
    return [statistics.fmean([math.log(stats.median(one.full)) for one in rounds]) for rounds in neighbours]


class _TimedProcess(NamedTuple):
    run: str
    weights: tuple[str, ...]
    alone: str
    """A row that replaces the loop shares its process with no other."""
    number: int


def _processes(record: Record, count: int) -> list[_TimedProcess]:
    weights = tuple(file.sha256 for file in record.weights if file.role == "main")
    alone = record.row.row if record.plan is None else ""
    return [_TimedProcess(record.run, weights, alone, number) for number in range(count)]


@dataclass(slots=True, eq=False)
class _Round:
    """Of one record and process: the full model's calls and the row's beside them."""

    full: Sequence[float]
    delays: Sequence[tuple[float, float]]
    logs: list[float]
    middle: float
    """Of the logarithms of `full / own`."""
    shift: stats.Shift
    """By how much delays may have moved it."""

    @classmethod
    def of(cls, full: Sequence[float], own: Sequence[float], delays: Sequence[tuple[float, float]]) -> _Round:
        (logs,) = stats.paired_logs([full], [own])
        return cls(full, delays, logs, stats.median(logs), stats.delayed(logs, delays))


_Neighbours = dict[_TimedProcess, list[_Round]]


def _count(found: _Neighbours) -> int:
    """Pairs of calls."""
    return sum(len(one.full) for rounds in found.values() for one in rounds)


@dataclass(frozen=True)
class _Pairs:
    """The rounds of some records by process; several rows may share one."""

    every: _Neighbours
    quiet: _Neighbours
    """Without pairs of which a call stalled."""

    @property
    def are_quiet_enough(self) -> bool:
        return len(self.quiet) >= min(ENOUGH, len(self.every)) and _count(self.quiet) > 1

    @property
    def counted(self) -> _Neighbours:
        """Those that stalled are left out where enough processes have others: that is told by how long calls waited, and never by
        their seconds, so nothing is chosen by how it came out."""
        return self.quiet if self.are_quiet_enough else self.every


@_kept
def _pairs(records: tuple[Record, ...], column: str, regime: str) -> _Pairs:
    pairs = _Pairs({}, {})
    for record in records:
        for process, every, quiet in _rounds_beside((record,), column, regime):
            for found, some in ((pairs.every, every), (pairs.quiet, quiet)):
                if some is not None:
                    found.setdefault(process, []).append(some)
    return pairs


@_kept
def _rounds_beside(
    records: tuple[Record, ...], column: str, regime: str
) -> list[tuple[_TimedProcess, _Round, _Round | None]]:
    """Of one record, by process: all pairs of calls, and those that did not stall, if any. What is computed of them serves the
    record's own figure and that of all rows of its plan."""
    (record,) = records
    timing = timing_column(record, column, regime)
    if timing is None or timing.beside is None:
        return []
    shares, delays = _shares(record, regime), _delays(record, timing)
    found: list[tuple[_TimedProcess, _Round, _Round | None]] = []
    for number, process in enumerate(_processes(record, len(timing.rounds))):
        full, own, lost = timing.beside[number], timing.rounds[number], delays[number]
        every = _Round.of(full, own, lost)
        calm = [place for place in range(len(own)) if not shares or shares[number][place] <= STALLED]
        if 0 < len(calm) < len(own):
            few = [full[place] for place in calm], [own[place] for place in calm], [lost[place] for place in calm]
            quiet = _Round.of(*few)
            found.append((process, every, quiet))
        else:
            found.append((process, every, every if calm else None))
    return found


def _shares(record: Record, regime: str) -> tuple[tuple[float, ...], ...]:
    """For how much of their time the calls of each pair were held up, by round; none where the system does not tell."""
    calls = record.timing.calls if record.timing else ()
    return next((told.pairs for told in calls if told.regime == regime), ())


def _delays(record: Record, timing: TimingColumn) -> Sequence[Sequence[tuple[float, float]]]:
    """Of each pair by round, the shares that the full model's call and the row's may have lost. Older records have the larger
    one of both, or only what is usual of the row's calls."""
    told = next((told for told in record.timing.calls if told.regime == timing.regime), None) if record.timing else None
    if told is not None and told.delayed:
        threads = record.environment.threads
        return [[stats.net(full, row, threads=threads) for full, row in some] for some in told.delayed]
    if told is not None and told.pairs:
        return [[(share, share) if share > HELD_UP else (0.0, 0.0) for share in some] for some in told.pairs]
    usual = (record.timing.held_up if record.timing else None) or 0.0
    lost = usual if usual > STALLED else 0.0
    return [[(lost, lost)] * len(some) for some in timing.rounds]


def left_out(records: Sequence[Record], column: str, regime: str) -> int:
    """How many pairs of calls do not count since one of them stalled."""
    pairs = _pairs(records, column, regime)
    return _count(pairs.every) - _count(pairs.counted)


def processes(records: Sequence[Record], column: str, regime: str) -> int:
    """That a figure is over."""
    return len(_pairs(records, column, regime).counted) or len(
        {
            process
            for record in records
            if (timing := timing_column(record, column, regime))
            for process in _processes(record, len(timing.rounds))
        }
    )


def speedup(
    records: Sequence[Record], full: Sequence[Record], *, accounting: str, column: str, regime: str
) -> Ratio | None:
    """Against the full model under one accounting, of which `full` are the records.

    The neighbour is the full model without needless cache. The other is brought over by its own ratio to that one. Without
    neighbours rows are divided by the full model's, of the same runs where they have one.
    """
    mine = beside(records, column, regime)
    if mine is not None and accounting == "lossless":
        return mine
    theirs = beside(full, column, regime)
    if mine is not None and theirs is not None:
        return stats.quotient(mine, theirs)
    runs = {record.run for record in records}
    same = [record for record in full if record.run in runs]
    above, below = rounds_of(same or full, column, regime), rounds_of(records, column, regime)
    return stats.unpaired_ratio(above, below) if above and below else None


def rounds_of(records: Iterable[Record], column: str, regime: str) -> list[tuple[float, ...]]:
    found = (timing_column(record, column, regime) for record in records)
    return [samples for timing in found if timing is not None for samples in timing.rounds]
