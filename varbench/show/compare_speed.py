"""Speed and latency of two sets of records: by how rows stand to the full model beside them, in each set.

A machine is faster on one day than on another, and nothing in two runs tells that from a change of the code. So what is
judged is the ratio to the full model, which met the same day. It still moves a little with the machine, which is allowed for.
Seconds are shown where there is no such ratio, and not judged.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from varbench.base import stats
from varbench.base.stats import Interval, Ratio
from varbench.show.entries import Entry
from varbench.show.limits import Change, Outcome
from varbench.show.speedups import WITH_MACHINE, machine, processes, rounds_of, speedup

SPEED_MINIMUM = 0.01
"""A smaller change of speed or memory is nobody's concern, however sure it is."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A row in one of the sets, with the full model under the same conditions."""

    entry: Entry
    full: Entry | None


Sides = tuple[Side, Side]


def speed_changes(pairs: dict[str, Sides]) -> dict[str, list[Change]]:
    """By row. Differences are called so with all others of the comparison in mind: one question for each plan and figure."""
    ratios: dict[tuple[str, str], tuple[Ratio, Ratio, Ratio]] = {}
    questions: dict[tuple[object, ...], Ratio] = {}
    plans: dict[tuple[str, str], tuple[object, ...]] = {}
    for name, sides in pairs.items():
        for figure in ("speed", "latency"):
            old, new = (_ratio(side, figure) for side in sides)
            if old is not None and new is not None:
                plan: tuple[object, ...] = (figure, *(tuple(map(id, side.entry.alike)) for side in sides))
                ratios[name, figure] = (old, new, _quotient(old, new, sides, figure))
                plans[name, figure] = plan
                if all(_processes(side, figure) > 1 for side in sides):
                    questions[plan] = ratios[name, figure][2]
    shown = dict(zip(questions, stats.holm([one.p for one in questions.values()]), strict=True))
    changes: dict[str, list[Change]] = {name: [] for name in pairs}
    for name, sides in pairs.items():
        for figure in ("speed", "latency"):
            key = (name, figure)
            if key in ratios:
                changes[name].append(_anchored(name, figure, *ratios[key], shown=shown.get(plans[key])))
            elif (change := _by_seconds(name, figure, sides)) is not None:
                changes[name].append(change)
    return changes


def _column(entry: Entry, figure: str) -> tuple[str, str]:
    return (entry.timed, "throughput") if figure == "speed" else ("end_to_end", "latency")


def _ratio(side: Side, figure: str) -> Ratio | None:
    """Over the full model; None for the full model itself, and where it was not measured."""
    if side.entry.is_full:
        return None
    column, regime = _column(side.entry, figure)
    full = side.full.complete if side.full else ()
    return speedup(side.entry.alike, full, accounting="lossless", column=column, regime=regime)


def _quotient(old: Ratio, new: Ratio, sides: Sides, figure: str) -> Ratio:
    """`new` over `old`, with what the machine may have done to it by being faster or slower than before."""
    before, after = (
        machine(side.entry.alike, *_column(side.entry, figure))
        or machine(side.full.complete if side.full else (), *_column(side.entry, figure))
        for side in sides
    )
    moved = statistics.fmean(after) - statistics.fmean(before) if before and after else 0.0
    return stats.widened(stats.quotient(new, old), WITH_MACHINE * abs(moved) / stats.student(math.inf))


def _processes(side: Side, figure: str) -> int:
    return processes(side.entry.alike, *_column(side.entry, figure))


def _anchored(name: str, figure: str, old: Ratio, new: Ratio, change: Ratio, *, shown: bool | None) -> Change:
    """`shown` is None where one process is all there is, which does not tell what differs between two."""
    verdict: Outcome = "not judged" if shown is None else "same"
    if shown and abs(math.log(change.value)) > math.log1p(SPEED_MINIMUM):
        verdict = "improved" if change.value > 1 else "regressed"
    return Change(
        row=name, figure=figure, verdict=verdict, old=old.value, new=new.value, change=_less_one(change), unit="x",
        relative=True, broken=None,
    )  # fmt: skip


def _by_seconds(name: str, figure: str, sides: Sides) -> Change | None:
    column, regime = _column(sides[0].entry, figure)
    before, after = (rounds_of(side.entry.complete, column, regime) for side in sides)
    if not before or not after:
        return None
    old, new = _middle(before), _middle(after)
    return Change(
        row=name, figure=figure, verdict="not judged", old=old, new=new, unit="s", relative=True, broken=None,
        change=_less_one(stats.unpaired_ratio(before, after)),
    )  # fmt: skip


def _middle(rounds: list[tuple[float, ...]]) -> float:
    """Of the same kind as the ratio is taken of."""
    return math.exp(math.fsum(math.log(stats.median(samples)) for samples in rounds) / len(rounds))


def _less_one(ratio: Interval) -> Interval:
    return Interval(value=ratio.value - 1, low=ratio.low - 1, high=ratio.high - 1)
