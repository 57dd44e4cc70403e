"""Small pure functions on samples: middle, spread, intervals, and whether a difference may be called one.

Samples come as rounds: one list per round, taken in a fresh process. Samples of one round share its luck (clock, cache,
neighbours), so every interval here resamples rounds first and samples within them second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Rounds = Sequence[Sequence[float]]
Judgement = Literal["better", "worse", "same"]

RESAMPLES = 400
WIDE = 0.05  # an interval wider than this share of its middle is worth a warning
NEEDLESS = 0.002  # and one narrower than this took more time than its use


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Relative width; how far the figure may wander when the measurement is repeated."""
        return (self.high - self.low) / abs(self.value) if self.value else math.inf


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a table shows of raw samples."""

    median: float
    low: float
    high: float
    iqr: float


def median(samples: Sequence[float]) -> float:
    return quantile(samples, 0.5)


def iqr(samples: Sequence[float]) -> float:
    """Distance of the quartiles. Zero does not mean a perfect clock; it may be a coarse one."""
    return quantile(samples, 0.75) - quantile(samples, 0.25)


def quantile(samples: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default."""
    if not samples:
        raise ValueError("no samples: a quantile of nothing does not exist")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(rounds: Rounds, *, seed: int = 0) -> Summary:
    """Median of all samples with its interval, and their spread."""
    flat = [sample for samples in rounds for sample in samples]
    middle = bootstrap_median(rounds, seed=seed)
    return Summary(median=middle.value, low=middle.low, high=middle.high, iqr=iqr(flat))


def bootstrap_median(rounds: Rounds, *, seed: int = 0) -> Interval:
    """The median of all samples. With one round the interval knows nothing of drift between processes."""
    import numpy as np

    draws = _median_draws(rounds, seed=seed)
    means = np.take_along_axis(draws, _round_draws(len(draws), seed=seed), axis=0).mean(axis=0)
    value = median([sample for samples in rounds for sample in samples])
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def ratio(above: Rounds, below: Rounds, *, paired: bool = True, seed: int = 0) -> Interval:
    """Middle of `above` over middle of `below`. Paired rounds ran side by side, so their common drift cancels.

    Rounds of unlike number, or of different runs, cannot be paired; the interval is then wider, as it should be.
    """
    import numpy as np

    paired = paired and len(above) == len(below)
    above_draws = np.log(_median_draws(above, seed=seed))
    below_draws = np.log(_median_draws(below, seed=seed + 1))
    above_rounds = _round_draws(len(above), seed=seed)
    below_rounds = above_rounds if paired else _round_draws(len(below), seed=seed + 1)
    logs = np.take_along_axis(above_draws, above_rounds, axis=0).mean(axis=0)
    logs = logs - np.take_along_axis(below_draws, below_rounds, axis=0).mean(axis=0)
    value = math.exp(
        float(np.mean([math.log(median(s)) for s in above])) - float(np.mean([math.log(median(s)) for s in below]))
    )
    low, high = (float(end) for end in np.exp(np.quantile(logs, (0.025, 0.975))))
    return Interval(value=value, low=min(value, low), high=max(value, high))


def paired_ratio(above: Rounds, below: Rounds, *, seed: int = 0) -> Interval:
    """How many times `above` is `below`, where the calls of each round are neighbours in time, one by one.

    Per round the median of the paired log ratios; over rounds, each a process of its own, Student's interval. One round
    says nothing of what differs between processes: its interval is that of its own pairs.
    """
    logs = [
        [math.log(one / other) for one, other in zip(ones, others, strict=True)]
        for ones, others in zip(above, below, strict=True)
    ]
    middles = [median(round) for round in logs]
    count = len(middles)
    if count == 1:
        spread = bootstrap_median([[math.exp(value) for value in logs[0]]], seed=seed)
        return Interval(value=math.exp(middles[0]), low=spread.low, high=spread.high)
    value = math.fsum(middles) / count
    between = math.sqrt(math.fsum((one - value) ** 2 for one in middles) / (count - 1) / count)
    half = student(count - 1) * between
    return Interval(value=math.exp(value), low=math.exp(value - half), high=math.exp(value + half))


def quotient(above: Interval, below: Interval) -> Interval:
    """Of two ratios that were measured apart; their half-widths on the log scale add in quadrature."""
    value = above.value / below.value
    down = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    up = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    return Interval(value=value, low=value * math.exp(-down), high=value * math.exp(up))


@functools.cache
def student(degrees: int) -> float:
    """The 97.5 % point of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def difference(first: Interval, second: Interval) -> Interval:
    """`second - first` of two figures measured apart; their half-widths add in quadrature, side by side."""
    value = second.value - first.value
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    return Interval(value=value, low=value - down, high=value + up)


def combine(repeats: Sequence[Interval]) -> Interval:
    """The mean of repeats (seeds, runs). One repeat is itself; of more, the interval is Student's over the repeats.

    It is never narrower than the repeats' own intervals allow: agreement of two may be luck.
    """
    count = len(repeats)
    if count == 1:
        return repeats[0]
    value = math.fsum(repeat.value for repeat in repeats) / count
    between = math.sqrt(math.fsum((repeat.value - value) ** 2 for repeat in repeats) / (count - 1) / count)
    within = math.sqrt(math.fsum(((repeat.high - repeat.low) / 2) ** 2 for repeat in repeats)) / count
    half = max(student(count - 1) * between, within)
    return Interval(value=value, low=value - half, high=value + half)


def judge_ratio(figure: Interval, *, minimum: float = 0.0, floor: float = 0.0) -> Judgement:
    """Is a ratio (above 1 is better) a difference? `same` means none was shown; it may or may not be there.

    The whole interval has to leave 1, and the figure by more than `minimum` (what one cares about) and more than
    `floor` (how far the full model differs from itself), all as shares: 0.05 is 5 %.
    """
    least = math.log1p(max(minimum, floor))
    if figure.low > 1 and math.log(figure.value) > least:
        return "better"
    if figure.high < 1 and math.log(figure.value) < -least:
        return "worse"
    return "same"


def judge_difference(figure: Interval, *, better: str, minimum: float = 0.0) -> Judgement:
    """Is `new - old` a difference? `same` means none was shown; it may or may not be there.

    The whole interval has to leave 0, and the figure by more than `minimum`. `better` says which way is up for the
    score: `lower` or `higher`.
    """
    if figure.low <= 0 <= figure.high or abs(figure.value) <= minimum:
        return "same"
    return "better" if (figure.value < 0) == (better == "lower") else "worse"


def spread_warning(what: str, rounds: Rounds) -> tuple[str, int | None] | None:
    """A text and how many rounds would do, when the interval is too wide or needlessly narrow; None when it is neither.

    None does not say that the figure is right, only that repeating it would give about the same.
    """
    if len(rounds) < 2:
        return (f"{what}: one round says nothing of the drift between processes", 3)
    width = bootstrap_median(rounds).width
    if width > WIDE:
        more = math.ceil(len(rounds) * min((width / WIDE) ** 2, 4))
        return (f"{what}: the interval is {width:.1%} wide, more than {WIDE:.0%}", more)
    if width < NEEDLESS and len(rounds) > 3:
        return (f"{what}: the interval is {width:.2%} wide; fewer rounds would do", 3)
    return None


def _median_draws(rounds: Rounds, *, seed: int) -> np.ndarray:
    """Medians of resampled samples, one row per round."""
    return _cached_median_draws(tuple(tuple(samples) for samples in rounds), seed)


@functools.lru_cache(maxsize=64)  # a denominator is divided by every row
def _cached_median_draws(rounds: tuple[tuple[float, ...], ...], seed: int) -> np.ndarray:
    import numpy as np

    if not rounds or not all(rounds):
        raise ValueError(f"{sum(not samples for samples in rounds)} of {len(rounds)} rounds hold no sample")
    generator = np.random.default_rng(seed)
    draws = []
    for samples in rounds:
        values = np.asarray(samples, dtype=np.float64)
        picked = values[generator.integers(len(values), size=(RESAMPLES, len(values)))]
        picked.sort(axis=1)
        draws.append((picked[:, (len(values) - 1) // 2] + picked[:, len(values) // 2]) / 2)
    return np.stack(draws)


def _round_draws(count: int, *, seed: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(seed + 7919).integers(count, size=(count, RESAMPLES))
