"""95 % intervals of figures that are means over images, shares of images, or known of halves of the images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varbench.base.stats import Interval, student
from varbench.quality.halves import Halves

NORMAL = 1.96

BLOCKS = 10
"""Of images, that the interval of the Inception Score is from."""

FEWEST = 2 * BLOCKS
"""Below so many images there is no interval to speak of."""


def share(part: float, n: int) -> Interval:
    """Wilson's interval of a share of n images; it stays within [0, 1] and has a width at 0 and 1 too."""
    square = NORMAL**2
    middle = (part + square / (2 * n)) / (1 + square / n)
    half = NORMAL / (1 + square / n) * math.sqrt(part * (1 - part) / n + square / (4 * n * n))
    return Interval(value=part, low=max(0.0, min(part, middle - half)), high=min(1.0, max(part, middle + half)))


def mean(values: NDArray[np.floating]) -> Interval:
    """Mean over images, by the normal distribution."""
    value = float(values.mean())
    half = NORMAL * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(value=value, low=value - half, high=value + half)


def of_halves(value: float, halves: Halves, *, besides: float = 0.0) -> Interval:
    """Of a squared distance, as Wilson's of a share: every figure from which chance could well have led to `value`.

    The means of the halves lie above the whole by what noise adds to the figure, and stray as much as that does. It is in
    the halves' difference twice, so that once is taken away. The less a set strays by chance, the less its halves do: one
    that is too low by luck knows of a small error only. So the error of a larger figure is taken to be larger, as if the
    noise were the same in so many directions as fit its mean and its variance. `besides` is a further deviation of another
    cause.
    """
    twice, noise = float(np.mean(np.square(halves.swings_S))), float(np.var(halves.means_S, ddof=1))
    variance = max(twice - noise, twice / 2) + besides**2
    growth = 2 * noise / halves.bias if halves.bias > 0 else 0.0
    wide = student(len(halves.first_S))
    lean = wide**2 * growth / 2
    half = math.hypot(wide * math.sqrt(variance), lean)
    return Interval(value=value, low=value + lean - half, high=value + lean + half)


def of_distance(value: float, halves: Halves) -> Interval:
    """As `of_halves`, of what cannot be below 0."""
    found = of_halves(value, halves)
    return Interval(value=value, low=max(0.0, found.low), high=found.high)


def share_around(part: float, variance: float, n: int) -> Interval:
    """As `share`, where one image may bring in or cost many: of as many as would stray so much."""
    return share(part, min(n, round(part * (1 - part) / variance)) if variance and 0 < part < 1 else n)


def of_blocks(value: float, deviation: float) -> Interval:
    """From the deviation of ten blocks as numpy gives it, which divides by ten where an estimate divides by nine."""
    half = student(BLOCKS - 1) * deviation / math.sqrt(BLOCKS - 1)
    return Interval(value=value, low=value - half, high=value + half)
