"""How often intervals hold the truth, and marks are right, on machines that drift: Monte Carlo on a known truth.

    python benchmarks/coverage.py

Every model makes the calls of a row and of the full model as a run takes them, neighbour by neighbour, in processes of their
own, some of them beside a neighbour that holds them up. Then whole runs are drawn from the recorded processes of
`recorded_run`, one of the README's line, and `varbench compare` is asked about two runs of one code. Two minutes on one core; seeds
are fixed, so the table is the same everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from varbench.base import stats
from varbench.base.stats import Ratio
from varbench.measure.speed import TOO_FAST
from varbench.measure.strain import HELD_UP
from varbench.record import Record, load_records
from varbench.record.options import FEWEST_PROCESSES, FEWEST_ROUNDS, pairs_of_further_rounds
from varbench.run.denominators import is_slowed
from varbench.show.compare import compare

TRUTH = 1.5
PAIRS = 6
THREADS = 2
CHILD = 0.02
"""Of the log ratio between processes: what records of a shared machine show, ungated (reports of 240 steps: 0.012 to 0.019)."""

Seconds = tuple[list[list[float]], list[list[float]]]
Lost = list[list[tuple[float, float]]]
Drift = Callable[[np.random.Generator, int], np.ndarray]


def steady(rng: np.random.Generator, calls: int) -> np.ndarray:
    return np.zeros(calls)


def warming(rng: np.random.Generator, calls: int) -> np.ndarray:
    """A clock that falls as the machine warms up, by another amount each time."""
    return np.linspace(0, rng.uniform(0.05, 0.3), calls)


def wandering(rng: np.random.Generator, calls: int) -> np.ndarray:
    return np.cumsum(rng.normal(0, 0.02, calls))


def stepping(rng: np.random.Generator, calls: int) -> np.ndarray:
    """A clock with two states."""
    return 0.2 * (np.arange(calls) >= rng.integers(calls))


def waves(rng: np.random.Generator, calls: int) -> np.ndarray:
    """A neighbour that comes and goes."""
    return 0.1 * np.sin(2 * np.pi * (np.arange(calls) / rng.uniform(5, 20) + rng.uniform()))


def stalling(rng: np.random.Generator, calls: int) -> np.ndarray:
    """One call in twenty takes up to ten times as long, and nothing told of it."""
    return np.where(rng.uniform(size=calls) < 0.05, rng.uniform(0, math.log(10), calls), 0.0)


DRIFTS: dict[str, Drift] = {drift.__name__: drift for drift in (steady, warming, wandering, stepping, waves, stalling)}


def run_of(
    rng: np.random.Generator, drift: Drift, *, children: int, truth: float = TRUTH, pairs: int = PAIRS
) -> Seconds:
    """Seconds of the full model and of the row, by process. Who goes first alternates."""
    full, row = [], []
    for _ in range(children):
        level = rng.normal(0, 0.1) + drift(rng, 2 * pairs) + rng.normal(0, 0.01, 2 * pairs)
        own = math.log(truth) + rng.normal(0, CHILD)
        first, second = level[::2], level[1::2]
        turned = np.arange(pairs) % 2 == 1
        full.append(list(np.exp(np.where(turned, second, first))))
        row.append(list(np.exp(np.where(turned, first, second) - own)))
    return full, row


@dataclass(frozen=True)
class Coverage:
    share: float
    half_width: float
    """The median, as a share of the figure."""


def coverage(
    estimate: Callable[[list[list[float]], list[list[float]]], Ratio], drift: Drift, *, children: int, runs: int
) -> Coverage:
    rng = np.random.default_rng(7)
    found = [estimate(*run_of(rng, drift, children=children)) for _ in range(runs)]
    widths = [math.sqrt(one.high / one.low) - 1 for one in found]
    return Coverage(sum(one.low <= TRUTH <= one.high for one in found) / runs, stats.median(widths))


def resampled(full: list[list[float]], row: list[list[float]]) -> Ratio:
    """Ratio of medians with calls drawn anew for either side, as if they had not been neighbours: how it was done before."""
    rng = np.random.default_rng(0)
    picked = rng.integers(len(full), size=(400, len(full)))

    def draws(rounds: list[list[float]]) -> np.ndarray:
        values = np.log(np.array(rounds))
        calls = rng.integers(values.shape[1], size=(400, *values.shape))
        medians = np.median(np.take_along_axis(values[None], calls, axis=2), axis=2)
        return np.asarray(np.take_along_axis(medians, picked, axis=1).mean(axis=1))

    low, high = np.exp(np.quantile(draws(full) - draws(row), (0.025, 0.975)))
    return Ratio(value=math.sqrt(low * high), low=float(low), high=float(high), error=0.0, degrees=0)


@dataclass(frozen=True)
class Beside:
    """What is said of a row beside a neighbour that never rests, so that every pair that counts was held up."""

    share: float
    half_width: float
    marked: float


def lost_to_a_neighbour(rng: np.random.Generator, *, most: float, children: int, truth: float) -> tuple[Seconds, Lost]:
    """It takes up to so much of calls' time, of one side more than of the other in all of a run. Of `THREADS` that wait for each
    other both may be counted as waiting, so the system tells of more than was lost."""
    found: Seconds = ([], [])
    waits: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    lean = rng.uniform(0, most) * rng.uniform(0.3, 1, 2)
    for process in zip(*run_of(rng, steady, children=children, truth=truth), strict=True):
        for side, seconds in enumerate(process):
            lost = np.minimum(lean[side] * rng.uniform(0.5, 1.5, len(seconds)), 0.95)
            waits[side].append(lost * rng.uniform(1, THREADS, len(seconds)))
            found[side].append(list(seconds / (1 - lost)))
    return found, told_of(*waits)


def told_of(full: list[np.ndarray], row: list[np.ndarray]) -> Lost:
    """What the page takes the waits of both sides for, by process."""
    sides = [[np.where(waited > HELD_UP, waited, 0.0) for waited in side] for side in (full, row)]
    return [
        [stats.net(*pair, threads=THREADS) for pair in zip(*both, strict=True)] for both in zip(*sides, strict=True)
    ]


def beside_a_neighbour(most: float, *, children: int, truth: float, runs: int, told: bool = True) -> Beside:
    """By the interval that knows for how long calls waited, or by the one that does not."""
    rng, found = np.random.default_rng(19), []
    for _ in range(runs):
        seconds, delays = lost_to_a_neighbour(rng, most=most, children=children, truth=truth)
        found.append(stats.paired_ratio(*seconds, delays if told else ()))
    return Beside(
        share=sum(one.low <= truth <= one.high for one in found) / runs,
        half_width=stats.median([math.sqrt(one.high / one.low) - 1 for one in found]),
        marked=sum(one.p <= 0.05 for one in found) / runs,
    )


def of_neighbours(runs: int) -> list[str]:
    lines = [
        "",
        "| a neighbour takes up to | processes | by the pairs alone | half-width | an equal row is marked | by what waited too "
        "| half-width | an equal row is marked | one of 1.5 is |",
        "|---" * 9 + "|",
    ]
    for most, children in itertools.product((0.0, 0.03, 0.1, 0.3), (3, 9)):
        cells = [f"{most:.0%}", f"{children}"]
        for told in (False, True):
            one, equal = (
                beside_a_neighbour(most, children=children, truth=truth, runs=runs, told=told) for truth in (TRUTH, 1.0)
            )
            cells += [f"{one.share:.3f}", f"{one.half_width:.1%}", f"{equal.marked:.1%}"]
        lines.append(f"| {' | '.join([*cells, f'{one.marked:.0%}'])} |")
    return lines


def waiting(rng: np.random.Generator, calls: Seconds, share: float) -> tuple[Seconds, Lost]:
    """As a system's own services have it: threads of every call wait for such a share of its time, added up, give or take a fifth,
    and both sides alike. All of them wait at once, or by turns, or something between."""
    if not share:
        return calls, []
    found: Seconds = ([], [])
    waits: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for process in zip(*calls, strict=True):
        for side, seconds in enumerate(process):
            waited = share * rng.uniform(0.8, 1.2, len(seconds))
            waits[side].append(waited)
            found[side].append(list(seconds / (1 - waited / rng.uniform(1, THREADS, len(seconds)))))
    return found, told_of(*waits)


@dataclass(frozen=True)
class Page:
    words: str
    truths: tuple[float, ...]
    """Of each plan, over the full model; the first is the one to be seen."""
    children: tuple[int, ...]
    upstream: float = 0.98
    """The full model with the official code's waste, over the full model without."""


PAGES = (
    Page("one of 5 %, four plans of 12 processes", (1.05, 1.5, 2.5, 1.0), (12, 12, 12, 12)),
    Page("one of 5 %, four plans of 8 processes", (1.05, 1.5, 2.5, 1.0), (8, 8, 8, 8)),
    Page("one of 5 %, of one row and 8 processes", (1.05, 1.5, 2.5, 1.0), (8, 12, 12, 12)),
    Page("no difference, four plans of 12 processes", (1.0, 1.0, 1.0, 1.0), (12, 12, 12, 12), upstream=1.0),
)


@dataclass(frozen=True)
class Marks:
    seen: float
    """Share of runs in which the true difference to the full model was marked."""
    false: float
    """Share of pages with a mark where there is no difference."""


WAITS = (0.0, 0.015, 0.024)
"""Shares of their time that calls wait: nothing, a little more than counts as nothing, and as much as a service that watched memory
was seen to take (docs/measuring.md)."""


def marks(page: Page, *, runs: int, waits: float = 0.0) -> Marks:
    """Every plan of a page is asked about twice, since there are two full models."""
    rng = np.random.default_rng(11)
    truths = [*page.truths, *(truth / page.upstream for truth in page.truths)]
    seen = false = 0
    for _ in range(runs):
        asked = zip((FEWEST_PROCESSES, *page.children), (page.upstream, *page.truths), strict=True)
        taken = (_rounds(rng, count, truth) for count, truth in asked)
        timed = (waiting(rng, calls, waits) for calls in taken)
        upstream, *found = (stats.paired_ratio(*calls, delays) for calls, delays in timed)
        found += [stats.quotient(one, upstream) for one in found]
        shown = stats.holm([one.p for one in found])
        seen += shown[0] and found[0].value > 1
        false += any(mark for mark, truth in zip(shown, truths, strict=True) if truth == 1)
    return Marks(seen / runs, false / runs)


def _rounds(rng: np.random.Generator, children: int, truth: float) -> Seconds:
    """Of a plan of several rows, or of one, whose further rounds take fewer pairs."""
    alone = children == FEWEST_PROCESSES
    first = run_of(rng, wandering, children=FEWEST_ROUNDS if alone else children, truth=truth)
    if not alone:
        return first
    pairs = pairs_of_further_rounds(PAIRS)
    further = run_of(rng, wandering, children=children - FEWEST_ROUNDS, truth=truth, pairs=pairs)
    return first[0] + further[0], first[1] + further[1]


def of_pages(runs: int) -> list[str]:
    lines = ["", "| page | calls wait | a true difference is marked | pages with a false mark |", "|---|---|---|---|"]
    for page, waits in itertools.product(PAGES, WAITS):
        found = marks(page, runs=runs, waits=waits)
        seen = f"{found.seen:.0%}" if page.truths[0] != 1 else "-"
        lines.append(f"| {page.words} | {f'{waits:.1%}' if waits else 'never'} | {seen} | {found.false:.1%} |")
    return lines


REPORTS = Path(__file__).parents[1] / "reports" / "tiny"
RECORDED = Path(__file__).parent / "recorded_run"

SLOW, STRAY = 0.2, 0.015
LEAN = {"d8": 0.2, "d2": 0.43}
SECONDS, BETWEEN = 15, 20
"""A machine of two states as two runs of one code met it (`tests/data/two_runs.json`). Logarithms: how much longer calls take in
the slow state, and by how much the gain of a batch of 1 strays from one stay in a state to the next; what share of the slowness
that gain rises by; then seconds of a process, and how many of them pass between the timing of the two runs."""


@dataclass(frozen=True)
class Moment:
    """The machine while a process is timed."""

    slow: float = 0.0
    stray: float = 0.0

    def gain(self, record: Record, regime: str) -> float:
        lean = LEAN.get(record.row.point or "")
        return 0.0 if lean is None or regime == "throughput" else lean * self.slow + self.stray


def moments(rng: np.random.Generator, count: int, *, minutes: float | None) -> list[Moment]:
    """Of a machine whose states last so long on average; without minutes of a steady one."""
    if minutes is None:
        return [Moment()] * count
    found = [Moment(SLOW * rng.integers(2), rng.normal(0, STRAY))]
    while len(found) < count:
        leaves = rng.uniform() < SECONDS / 60 / minutes
        found.append(Moment(SLOW - found[-1].slow, rng.normal(0, STRAY)) if leaves else found[-1])
    return found


Recorded = dict[tuple[int, str], dict[str, Record]]
"""Processes, by round and weights, with the rows that were timed there by their plans."""


def processes_of(records: Sequence[Record]) -> Recorded:
    found: Recorded = {}
    for record in records:
        assert record.timing is not None and record.plan is not None
        for number in range(len(record.timing.columns[0].rounds)):
            weights = next(file.sha256 for file in record.weights if file.role == "main")
            found.setdefault((number, weights), {})[record.plan.digest] = record
    return dict(sorted(found.items()))


def drawn_run(rng: np.random.Generator, recorded: Recorded, machine: Sequence[Moment]) -> list[Record]:
    """A run each process of which is one that was recorded, whole: with all its rows and all that was timed of them."""
    taken: dict[str, list[tuple[Record, int, Moment]]] = {}
    rows: dict[str, Record] = {}
    for here, moment in zip(recorded.values(), machine, strict=True):
        fit = [process for process, there in recorded.items() if here.keys() <= there.keys()]
        number, weights = fit[rng.integers(len(fit))]
        for plan, record in here.items():
            rows[record.row.row] = record
            taken.setdefault(record.row.row, []).append((recorded[number, weights][plan], number, moment))
    return [timed(record, taken[name]) for name, record in rows.items()]


def timed(record: Record, taken: Sequence[tuple[Record, int, Moment]]) -> Record:
    """With rounds of other rows of its plan, each as it would have been on a machine in such a state."""
    assert record.timing is not None
    columns = []
    for place, column in enumerate(record.timing.columns):
        full, own = [], []
        for source, number, moment in taken:
            assert source.timing is not None
            seen, gain = source.timing.columns[place], moment.gain(record, column.regime)
            assert seen.beside is not None
            full.append(tuple(math.exp(moment.slow) * second for second in seen.beside[number]))
            own.append(tuple(math.exp(moment.slow - gain) * second for second in seen.rounds[number]))
        columns.append(replace(column, rounds=tuple(own), beside=tuple(full)))
    return replace(record, timing=replace(record.timing, columns=tuple(columns)))


def slowed(record: Record, times: float) -> Record:
    assert record.timing is not None
    columns = tuple(
        replace(one, rounds=tuple(tuple(times * second for second in some) for some in one.rounds))
        for one in record.timing.columns
    )
    return replace(record, timing=replace(record.timing, columns=columns))


CHANGED = "d8"


def two_runs(records: Sequence[Record], *, runs: int, minutes: float | None = None, change: float = 1.0) -> Marks:
    """What `varbench compare` says of two runs of one code, but that in the second rows of one point take so much longer."""
    rng = np.random.default_rng(5)
    recorded = processes_of(records)
    seen = false = 0
    for _ in range(runs):
        machine = moments(rng, 2 * len(recorded) + BETWEEN, minutes=minutes)
        old = drawn_run(rng, recorded, machine[: len(recorded)])
        new = [
            slowed(record, change) if record.row.point == CHANGED else record
            for record in drawn_run(rng, recorded, machine[-len(recorded) :])
        ]
        told = [one for one in compare(old, new).changes if one.verdict in ("improved", "regressed")]
        changed = [one for one in told if change != 1 and one.row.endswith(CHANGED)]
        seen += any(one.figure == "speed" and one.verdict == "regressed" for one in changed)
        false += len(told) > len(changed)
    return Marks(seen / runs, false / runs)


def other_images() -> list[int]:
    """How many scores have a verdict, in comparisons of runs that made other images from the same weights."""
    folder = REPORTS / "schedules" / "records"
    runs = [load_records([folder / f"250-{seed}"]).records for seed in range(3)]
    untrained = [[record for record in records if record.training is None] for records in runs]
    found = [compare(old, new).changes for old, new in itertools.combinations(untrained, 2)]
    return [sum(one.verdict in ("improved", "regressed") for one in changes) for changes in found]


def blamed(drift: Drift, *, runs: int, takes: float = 1.0) -> float:
    """Share of rows that are said to remember calls, of three processes each, where an equal call takes so much of a fresh one."""
    rng, found = np.random.default_rng(13), 0
    for _ in range(runs):
        shares = []
        for _ in range(3):
            seconds = np.exp(drift(rng, 2 * PAIRS + 1) + rng.normal(0, 0.05, 2 * PAIRS + 1))
            shares.append(takes * seconds[-1] / seconds[:-1:2].min())
        found += max(shares) < TOO_FAST
    return found / runs


def found_slow(slower: float, *, processes: int, others: int, runs: int) -> float:
    """Share of rows whose full model was slowed by so much, and is found to be, beside other processes of the run."""
    rng, found = np.random.default_rng(17), 0

    def drawn(slower: float, count: int) -> list[list[tuple[float, float]]]:
        luck = rng.normal(0, CHILD, (count, 2))  # of the row's process, and of the one without plugins
        logs = math.log1p(slower) + (luck[:, 0] - luck[:, 1])[:, None] + rng.normal(0, 0.02, (count, 3))
        return [[(math.exp(log), 1.0) for log in some] for some in logs]

    for _ in range(runs):
        found += is_slowed(drawn(slower, processes), [drawn(0.0, 3) for _ in range(others // 3)])
    return found / runs


SLOWER = (0.0, 0.05, 0.08, 0.1, 0.15, 0.3)


def judged(runs: int) -> list[str]:
    lines = ["", "| machine | honest rows said to remember calls | rows that do, and are said to |", "|---|---|---|"]
    for name, drift in DRIFTS.items():
        lines.append(f"| {name} | {blamed(drift, runs=runs):.1%} | {blamed(drift, runs=runs, takes=0.1):.1%} |")
    lines += [
        "",
        f"| processes | others | {' | '.join(f'slowed by {slower:.0%}' for slower in SLOWER)} |",
        "|---" * 8 + "|",
    ]
    for processes, others in ((3, 0), (5, 0), (9, 0), (3, 6), (3, 12), (5, 12), (9, 6)):
        shares = (found_slow(slower, processes=processes, others=others, runs=runs) for slower in SLOWER)
        lines.append(f"| {processes} | {others} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return lines


def table(runs: int) -> str:
    lines = [
        "| machine | processes | paired holds the truth | half-width | each side resampled | half-width |",
        "|---|---|---|---|---|---|",
    ]
    for name, drift in DRIFTS.items():
        for children in (3, 5, 9):
            paired = coverage(stats.paired_ratio, drift, children=children, runs=runs)
            before = coverage(resampled, drift, children=children, runs=runs // 4)
            lines.append(
                f"| {name} | {children} | {paired.share:.3f} | {paired.half_width:.1%} | {before.share:.2f} | {before.half_width:.1%} |"
            )
    lines += of_neighbours(runs)
    lines += of_pages(runs)
    lines += [
        "",
        "| two runs of one code | a change of 10 % is told | comparisons with a false verdict |",
        "|---|---|---|",
    ]
    records = load_records([RECORDED]).records
    for minutes in (None, 3, 6, 10):
        words = "steady machine" if minutes is None else f"two states, of {minutes} minutes each"
        of_ten = two_runs(records, runs=runs // 10, minutes=minutes, change=1.1).seen
        lines.append(f"| {words} | {of_ten:.0%} | {two_runs(records, runs=runs // 10, minutes=minutes).false:.1%} |")
    told = other_images()
    lines.append(f"| recorded, of {len(told)} pairs of image seeds | - | {sum(map(bool, told)) / len(told):.1%} |")
    return "\n".join([*lines, *judged(runs)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints how often intervals hold the truth on machines that drift.")
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs a line")
    print(table(parser.parse_args().runs))
