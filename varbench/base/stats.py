"""Small pure functions on samples: middle, spread, intervals, and whether a difference may be called one.

Samples come as rounds: one list per round, taken in a fresh process. Samples of one round share its luck (clock, cache,
neighbours), so every interval here resamples rounds first and samples within them second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Rounds = Sequence[Sequence[float]]
Judgement = Literal["better", "worse", "same"]
Delays = Sequence[tuple[float, float]]
"""Of a round's pairs, the share of its time that either call may have lost."""
Shift = tuple[float, float]
"""How far down and up a logarithm may have to be moved."""

RESAMPLES = 400

MOST_DELAYED = 0.9
"""Of a call's time: who waited for longer, all threads together, may be ten times as fast alone, and more says no more."""


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
class Ratio(Interval):
    """A ratio with what is known of its error, on the log scale."""

    error: float
    """Standard error of the logarithm."""
    degrees: float
    """Degrees of freedom of that error; 0 where one sample is all there is, which says nothing of its error."""
    down: float = 0.0
    """By how much its logarithm may be too high whatever the error, since what it was taken from was delayed: beyond the error."""
    up: float = 0.0
    """By how much it may be too low."""

    @property
    def p(self) -> float:
        """How likely it is that two equal things look this different, by Student, once delays have done all that they may."""
        from scipy.special import stdtr

        log = math.log(self.value)
        apart = abs(log) - (self.down if log > 0 else self.up)
        if not self.degrees or apart <= 0:
            return 1.0
        return 2 * float(stdtr(self.degrees, -apart / self.error)) if self.error else 0.0


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


def paired_ratio(above: Rounds, below: Rounds, delays: Sequence[Delays] = ()) -> Ratio:
    """How many times `above` is `below`, where the calls of each round are neighbours in time, one by one.

    Rounds are processes: of each the median of its paired log ratios, over them Student. One round says nothing of what
    differs between processes: its interval is that of its own pairs. With `delays`, the interval is longer by what they may have
    done, see `delayed`.
    """
    logs = paired_logs(above, below)
    ratio = within_round(logs[0]) if len(logs) == 1 else over_rounds([median(round) for round in logs])
    return moved(ratio, mean_shift(map(delayed, logs, delays))) if delays else ratio


def paired_logs(above: Rounds, below: Rounds) -> list[list[float]]:
    """Logarithms of the ratios of neighbouring calls, by round."""
    return [
        [math.log(one / other) for one, other in zip(ones, others, strict=True)]
        for ones, others in zip(above, below, strict=True)
    ]


def unpaired_ratio(above: Rounds, below: Rounds) -> Ratio:
    """Middle of `above` over middle of `below`, whose calls are no neighbours: what drifts between them is in the interval."""
    return quotient(_middle(above), _middle(below))


def _middle(rounds: Rounds) -> Ratio:
    logs = [[math.log(sample) for sample in samples] for samples in rounds]
    return within_round(logs[0]) if len(logs) == 1 else over_rounds([median(round) for round in logs])


def over_rounds(logs: Sequence[float]) -> Ratio:
    """One logarithm from every process."""
    count = len(logs)
    log = math.fsum(logs) / count
    error = math.sqrt(math.fsum((one - log) ** 2 for one in logs) / (count - 1) / count) if count > 1 else 0.0
    return _ratio(log, error, count - 1)


def within_round(logs: Sequence[float]) -> Ratio:
    """Logarithms from one process. The median's error by the quartiles, 7 % above a normal one's: stalls leave it alone."""
    return _ratio(median(logs), iqr(logs) / math.sqrt(len(logs)), len(logs) - 1)


def delayed(logs: Sequence[float], delays: Delays) -> Shift:
    """How far below and above the median of these logarithms of `above / below` that without delays may lie. A call that lost a
    share of its time at most would have taken no less than the rest, so a delay of one side moves a pair in one direction."""
    pairs = list(zip(logs, delays, strict=True))
    if not any(map(any, delays)):
        return 0.0, 0.0
    middle = median(logs)
    lows = [log + _without(above) for log, (above, _) in pairs]
    highs = [log - _without(below) for log, (_, below) in pairs]
    return middle - median(lows), median(highs) - middle


def net(full: float, row: float, *, threads: int | None) -> tuple[float, float]:
    """Of a pair's delays what either call may have lost beyond what the other lost as well.

    They are the waits of so many threads added up. Where all of them waited at once a call lost that part of the sum, and where
    they did so by turns all of it.
    """

    if not (full or row):
        return 0.0, 0.0

    def beyond(one: float, other: float) -> float:
        lost = _without(other / threads) if threads else 0.0
        return max(0.0, -math.expm1(_without(one) - lost))

    return beyond(full, row), beyond(row, full)


def _without(share: float) -> float:
    return math.log1p(-min(share, MOST_DELAYED))


def mean_shift(shifts: Iterable[Shift]) -> Shift:
    downs, ups = zip(*shifts, strict=True)
    return math.fsum(downs) / len(downs), math.fsum(ups) / len(ups)


def moved(ratio: Ratio, shift: Shift) -> Ratio:
    """With an interval that is longer on either side by what delays may have done. It is no error that a mean makes smaller, so
    it is added whole."""
    down, up = shift
    return _ratio(math.log(ratio.value), ratio.error, ratio.degrees, down=down, up=up) if down or up else ratio


def quotient(above: Ratio, below: Ratio) -> Ratio:
    """Of two ratios that were measured apart, as Welch has it."""
    error = math.hypot(above.error, below.error)
    parts = [one.error**4 / one.degrees for one in (above, below) if one.degrees]
    degrees = error**4 / sum(parts) if sum(parts) else max(above.degrees, below.degrees)
    down, up = above.down + below.up, above.up + below.down
    return _ratio(math.log(above.value / below.value), error, degrees, down=down, up=up)


def widened(ratio: Ratio, error: float) -> Ratio:
    """With an error beside its own that was not estimated from its samples."""
    return (
        quotient(ratio, Ratio(value=1.0, low=1.0, high=1.0, error=error, degrees=math.inf)) if ratio.degrees else ratio
    )


def _ratio(log: float, error: float, degrees: float, *, down: float = 0.0, up: float = 0.0) -> Ratio:
    half = student(degrees) * error if degrees else 0.0
    low, high = math.exp(log - half - down), math.exp(log + half + up)
    return Ratio(value=math.exp(log), low=low, high=high, error=error, degrees=degrees, down=down, up=up)


def holm(chances: Sequence[float], *, level: float = 0.05) -> list[bool]:
    """Which of several differences were shown, so that in `1 - level` of such families none is called one that is none.

    `chances` are the `p` of each. The least is held against `level` over their number, the next over one fewer, until one
    does not pass.
    """
    shown = [False] * len(chances)
    for place, number in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if chances[number] > level / (len(chances) - place):
            break
        shown[number] = True
    return shown


def chance_of(gap: Interval) -> float:
    """How likely two equal figures lie so far apart, by the interval of their difference, taken for a normal one's."""
    from scipy.special import ndtr

    half = gap.value - gap.low if gap.value > 0 else gap.high - gap.value
    return 2 * float(ndtr(-student(math.inf) * abs(gap.value) / half)) if half else float(not gap.value)


def surely_above(
    samples: Sequence[float], limit: float, *, chance: float, alike: Sequence[Sequence[float]] = ()
) -> bool:
    """Whether the mean of what samples were drawn from is above a limit, by Student's test, one-sided.

    `alike` are further samples, each group about a mean of its own, that stray as these do: a few samples alone hardly know
    by how much.
    """
    from scipy.special import stdtrit

    groups = [samples, *alike]
    means = [math.fsum(some) / len(some) for some in groups]
    degrees = sum(len(some) - 1 for some in groups)
    square = math.fsum((one - mean) ** 2 for some, mean in zip(groups, means, strict=True) for one in some)
    error = math.sqrt(square / degrees / len(samples))
    return means[0] - float(stdtrit(degrees, 1 - chance)) * error > limit


def combined_chance(chances: Sequence[float]) -> float:
    """Of independent tests of one thing, by Fisher's method: how likely so small chances are by chance."""
    from scipy.special import chdtrc

    return float(chdtrc(2 * len(chances), -2 * math.fsum(math.log(one) for one in chances)))


@functools.cache
def student(degrees: float) -> float:
    """The 97.5 % point of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def difference(first: Interval, second: Interval) -> Interval:
    """`second - first` of two figures measured apart; their half-widths add in quadrature, side by side."""
    value = second.value - first.value
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    return Interval(value=value, low=value - down, high=value + up)


def paired_difference(first: Interval, second: Interval, swings: Sequence[tuple[float, float]]) -> Interval:
    """`second - first` of two figures of images that share their noise: `swings` holds, for each of many splits of the
    images, half of the difference between its halves, of the first figure and of the second."""
    value = second.value - first.value
    half = student(len(swings)) * math.sqrt(math.fsum((one - other) ** 2 for one, other in swings) / len(swings))
    return Interval(value=value, low=value - half, high=value + half)


def middle(alike: Sequence[Interval]) -> Interval:
    """The mean of figures that share what they are uncertain by: as wide as they are."""
    value, low, high = (
        math.fsum(ends) / len(alike) for ends in zip(*((a.value, a.low, a.high) for a in alike), strict=True)
    )
    return Interval(value=value, low=low, high=high)


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


def judge_ratio(figure: Interval, *, minimum: float = 0.0) -> Judgement:
    """Is a ratio (above 1 is better) a difference? `same` means none was shown; it may or may not be there.

    The whole interval has to leave 1, and the figure by more than `minimum`, what one cares about, as a share: 0.05 is 5 %.
    """
    least = math.log1p(minimum)
    if figure.low > 1 and math.log(figure.value) > least:
        return "better"
    if figure.high < 1 and math.log(figure.value) < -least:
        return "worse"
    return "same"


def judge_difference(figure: Interval, *, better: str) -> Judgement:
    """Is `new - old` a difference? `same` means none was shown; it may or may not be there.

    The whole interval has to leave 0. `better` says which way is up for the score: `lower` or `higher`.
    """
    if figure.low <= 0 <= figure.high:
        return "same"
    return "better" if (figure.value < 0) == (better == "lower") else "worse"


def _median_draws(rounds: Rounds, *, seed: int) -> np.ndarray:
    """Medians of resampled samples, one row per round."""
    return _cached_median_draws(tuple(tuple(samples) for samples in rounds), seed)


@functools.lru_cache(maxsize=64)  # a record is filled anew whenever its run comes on
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
