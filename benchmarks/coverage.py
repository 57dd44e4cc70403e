"""How often intervals hold the truth, and marks are right, on machines that drift: Monte Carlo on a known truth.

    python benchmarks/coverage.py

Every model makes the calls of a row and of the full model as a run takes them, neighbour by neighbour, in processes of their
own. A minute on one core; seeds are fixed, so the table is the same everywhere.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from varbench.base import stats
from varbench.base.stats import Ratio
from varbench.run.denominators import is_slowed
from varbench.run.verdict import TOO_FAST

TRUTH = 1.5
PAIRS = 6
CHILD = 0.02
"""Of the log ratio between processes: what records of a shared machine show, ungated (reports of 240 steps: 0.012 to 0.019)."""

Seconds = tuple[list[list[float]], list[list[float]]]
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
class Marks:
    seen: float
    """Share of runs in which a true difference was marked."""
    false: float
    """Share of pages with a mark where there is no difference."""


def marks(truths: tuple[float, ...], children: tuple[int, ...], *, runs: int) -> Marks:
    """A page of plans, each with a true ratio and so many processes; the first is the one to be seen."""
    rng = np.random.default_rng(11)
    seen = false = 0
    for _ in range(runs):
        found = [
            stats.paired_ratio(*run_of(rng, wandering, children=count, truth=one))
            for count, one in zip(children, truths, strict=True)
        ]
        shown = stats.holm([one.p for one in found])
        seen += shown[0] and found[0].value > 1
        false += any(mark for mark, one in zip(shown, truths, strict=True) if one == 1)
    return Marks(seen / runs, false / runs)


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
    lines += ["", "| page | a true difference is marked | pages with a false mark |", "|---|---|---|"]
    for words, truths, children in PAGES:
        found = marks(truths, children, runs=runs)
        seen = f"{found.seen:.0%}" if truths[0] != 1 else "-"
        lines.append(f"| {words} | {seen} | {found.false:.1%} |")
    return "\n".join([*lines, *judged(runs)])


PAGES = (
    ("one of 5 %, four plans of 12 processes", (1.05, 1.5, 2.5, 1.0), (12, 12, 12, 12)),
    ("one of 5 %, four plans of 6 processes", (1.05, 1.5, 2.5, 1.0), (6, 6, 6, 6)),
    ("one of 5 %, of one row and 5 processes", (1.05, 1.5, 2.5, 1.0), (5, 12, 12, 12)),
    ("no difference, four plans of 12 processes", (1.0, 1.0, 1.0, 1.0), (12, 12, 12, 12)),
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints how often intervals hold the truth on machines that drift.")
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs a line")
    print(table(parser.parse_args().runs))
