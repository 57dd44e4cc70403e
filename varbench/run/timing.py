"""The `timing` section of a row's record, from the rounds in which it was timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from varbench.base import stats
from varbench.measure.calls import Times
from varbench.measure.largest import largest_by_plan
from varbench.measure.pairs import Call, Pair
from varbench.measure.speed import SpeedRound
from varbench.measure.strain import Strain
from varbench.record import DrawnCalls, HeldUp, LargestBatch, PerScale, Timing, TimingColumn
from varbench.run.findings import Findings
from varbench.run.prepare import RowInRun, Run

COLUMNS: dict[str, Callable[[Times], float | None]] = {
    "transformer": lambda times: times.transformer,
    "loop": lambda times: times.loop,
    "with_decoder": lambda times: times.with_decoder,
    "end_to_end": lambda times: times.end_to_end,
}


def timing(run: Run, row: RowInRun, found: Findings, missing: dict[str, str]) -> Timing | None:
    rounds = [found.speed[number] for number in sorted(found.speed)]
    if not rounds:
        if not run.options.rounds:
            missing["timing"] = "speed was left out, by --rounds 0"
        return None
    if unseen := next((one.unseen for one in rounds if one.unseen), None):
        missing["timing.board"] = unseen
    return Timing(
        columns=tuple(_columns(rounds, batch=run.options.batch)),
        per_scale=_per_scale(row, rounds, missing, batch=run.options.batch),
        largest_batch=_largest(run, row, found, missing),
        compile_seconds=None
        if run.options.compile == "off" or rounds[0].second_call is None
        else max(0.0, rounds[0].first_call - rounds[0].second_call),
        first_call_seconds=rounds[0].first_call,
        discarded=sum(timed.discarded for timed in rounds),
        held_up=_held_up(rounds),
        calls=tuple(_how_they_ran(rounds)),
        drawn=tuple(_drawn(rounds, batch=run.options.batch)),
    )


def finished(name: str, found: Findings) -> str:
    """A row in a line, once it is measured."""
    told = [width(found)]
    if found.seen is not None and found.seen.scored.quality is not None:
        score = next(iter(found.seen.scored.quality.scores), None)
        if score is not None and score.value is not None:
            told.append(f"{score.name} {score.value:.3g}")
    return f"  {name}: {', '.join(filter(None, told)) or 'measured'}"


def width(found: Findings) -> str | None:
    """The speedup over the full model as far as it is known, from the row's own processes; the page pools rows of one plan."""
    rounds = [found.speed[number] for number in sorted(found.speed)]
    pairs = [timed.throughput for timed in rounds]
    for column in ("transformer", "with_decoder"):
        own = _samples(pairs, COLUMNS[column], lambda pair: pair.row)
        beside = _samples(pairs, COLUMNS[column], lambda pair: pair.full)
        if own and beside:
            ratio = stats.paired_ratio(beside, own, [_delayed(some) for some in pairs])
            return f"{ratio.value:.2f}x ± {(ratio.high - ratio.low) / 2:.2f} over {len(rounds)} process{'es' if len(rounds) > 1 else ''}"
    return None


def _columns(rounds: list[SpeedRound], *, batch: int) -> Iterator[TimingColumn]:
    for regime, size in (("throughput", batch), ("latency", 1)):
        pairs = [timed.pairs(regime) for timed in rounds]
        for column, of in COLUMNS.items():
            own = _samples(pairs, of, lambda pair: pair.row)
            if own is None:
                continue
            beside = _samples(pairs, of, lambda pair: pair.full)
            summary = stats.summarise(own)
            walled = column == "end_to_end"
            clock = pairs[0][0].row.times.clock
            yield TimingColumn(
                column=column,
                regime=regime,
                batch=size,
                clock="perf_counter" if walled else clock,
                rounds=own,
                beside=beside,
                median=summary.median,
                low=summary.low,
                high=summary.high,
                iqr=summary.iqr,
            )


def _samples(
    pairs: list[tuple[Pair, ...]], of: Callable[[Times], float | None], which: Callable[[Pair], Call | None]
) -> tuple[tuple[float, ...], ...] | None:
    """Seconds by round; None where a call has no such column, or there is no such call."""
    found = []
    for some in pairs:
        calls = [which(pair) for pair in some]
        seconds = [of(call.times) for call in calls if call is not None]
        known = tuple(second for second in seconds if second is not None)
        if not known or len(known) != len(some):
            return None
        found.append(known)
    return tuple(found)


def _per_scale(row: RowInRun, rounds: list[SpeedRound], missing: dict[str, str], *, batch: int) -> PerScale | None:
    """Times of single steps, from the calls that are timed anyway: every call marks the end of each step."""
    if row.plan is not None and row.plan.decision is not None:
        missing["timing.per_scale"] = "which steps run depends on content"
        return None
    times = [pair.row.times for timed in rounds for pair in timed.throughput]
    if not times or not times[0].steps:
        return None
    if len(counts := {len(time.steps) for time in times}) > 1:
        missing["timing.per_scale"] = f"calls had from {min(counts)} to {max(counts)} steps"
        return None
    totals = [sum(time.steps) for time in times]
    shares = [[step / total for step in time.steps] for time, total in zip(times, totals, strict=True)]
    usual = [stats.median(found) for found in zip(*shares, strict=True)]
    # Medians of steps add up to less than a call takes where each call was slow in another of them.
    seconds = tuple(share / sum(usual) * stats.median(totals) for share in usual)
    return PerScale(batch=batch, clock=times[0].clock, seconds=seconds)


def _drawn(rounds: list[SpeedRound], *, batch: int) -> Iterator[DrawnCalls]:
    for one in rounds:
        for regime, size in (("throughput", batch), ("latency", 1)):
            if (seen := one.oversight) is None or not (pairs := one.pairs(regime)):
                continue
            laps = [lap for lap in seen.laps if lap.batch == size]
            alone = [(pair.full, pair.row) for pair in one.alone.get(regime, ()) if pair.full is not None]
            yield DrawnCalls(
                regime=regime,
                secret=seen.secret,
                seeds=tuple(lap.seed for lap in laps),
                answers=tuple(lap.answer for lap in laps),
                first_image=seen.first,
                between_seconds=seen.busy_between,
                full_alone=tuple((beside.times.end_to_end, call.times.end_to_end) for beside, call in alone),
                outside=tuple(pair.row.outside for pair in pairs),
                outside_alone=tuple(call.outside for _, call in alone),
                likeness=seen.likeness.chance if seen.likeness and regime == "throughput" else None,
            )


def _held_up(rounds: list[SpeedRound]) -> float | None:
    shares = [
        stats.median(found)
        for timed in rounds
        if (found := [pair.row.held_up for pair in timed.throughput if pair.row.strain is not None])
    ]
    return max(shares, default=None)


def _how_they_ran(rounds: list[SpeedRound]) -> Iterator[HeldUp]:
    for regime in ("throughput", "latency"):
        pairs = [timed.pairs(regime) for timed in rounds]
        own = _strains([[pair.row for pair in some] for some in pairs])
        if not own:
            continue
        beside = {
            f"beside_{name}": told for name, told in _strains([[pair.full for pair in some] for some in pairs]).items()
        }
        shares = tuple(tuple(pair.held_up for pair in some) for some in pairs)
        yield HeldUp(regime=regime, pairs=shares, delayed=tuple(map(_delayed, pairs)), **own, **beside)


def _strains(calls: list[list[Call | None]]) -> dict[str, Any]:
    """What the system says of calls, one list a round; nothing where it does not tell of each."""
    told = [[call and call.strain for call in some] for some in calls]
    if not any(told) or any(one is None for some in told for one in some):
        return {}
    return {
        part.name: tuple(tuple(getattr(one, part.name) for one in some) for some in told) for part in fields(Strain)
    }


def _delayed(pairs: Sequence[Pair]) -> tuple[tuple[float, float], ...]:
    """Of the full model's calls and of the row's."""
    return tuple((pair.full.delayed if pair.full else 0.0, pair.row.delayed) for pair in pairs)


def _largest(run: Run, row: RowInRun, found: Findings, missing: dict[str, str]) -> LargestBatch | None:
    if found.looks is not None and found.looks.largest is not None:
        return found.looks.largest
    if run.options.device != "cpu":
        missing["timing.largest_batch"] = "the bisection did not run"
        return None
    if row.plan is None:
        missing["timing.largest_batch"] = "there is no plan to bound it by"
        return None
    if run.available_memory is None:
        missing["timing.largest_batch"] = "the system does not say how much memory is free"
        return None
    return _by_plan(row, run.options.dtype, run.available_memory)


@functools.lru_cache(maxsize=4096)
def _by_plan(row: RowInRun, dtype: str, free: int) -> LargestBatch:
    """A record is written many times, and the bisection is long."""
    assert row.plan is not None
    return largest_by_plan(row.plan, dtype=dtype, free=free)
