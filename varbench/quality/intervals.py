"""95 % intervals of figures that are means over images, shares of images, or known of halves of the images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varbench.base.stats import Interval, student
from varbench.quality.halves import Halves

NORMAL = 1.96
STUDENT_9 = 2.262
"""97.5 % point at 9 degrees of freedom: the interval of the Inception Score, from ten blocks."""

BLOCKS = 10

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


def around(value: float, halves: Halves, *, besides: float = 0.0) -> Interval:
    """`value` plus and minus what its halves say; `besides` is a further deviation of another cause."""
    half = student(len(halves.first_S)) * math.hypot(float(np.std(halves.all)), besides)
    return Interval(value=value, low=value - half, high=value + half)


def share_around(part: float, halves: Halves, n: int) -> Interval:
    """As `share`, where one image may bring in or cost many: of as many as would stray as the halves do."""
    spread = float(np.var(halves.all))
    return share(part, min(n, round(part * (1 - part) / spread)) if spread and 0 < part < 1 else n)


def of_square(value: float, halves: Halves) -> Interval:
    """Of a squared distance: on its root, which strays to either side alike, and never below 0."""
    swings = (np.sqrt(halves.first_S) - np.sqrt(halves.second_S)) / 2
    half = student(len(swings)) * math.sqrt(float(np.mean(np.square(swings))))
    root = math.sqrt(max(value, 0.0))
    return Interval(value=value, low=min(value, max(0.0, root - half) ** 2), high=(root + half) ** 2)


def of_blocks(value: float, deviation: float) -> Interval:
    """From the deviation of ten blocks as numpy gives it, which divides by ten where an estimate divides by nine."""
    half = STUDENT_9 * deviation / math.sqrt(BLOCKS - 1)
    return Interval(value=value, low=value - half, high=value + half)
