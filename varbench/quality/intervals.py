"""95 % intervals of figures that are means over images, shares of images, or means over blocks of images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varbench.base.stats import Interval

NORMAL = 1.96
STUDENT_9 = 2.262
"""97.5 % point at 9 degrees of freedom: intervals from the means of ten blocks."""

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


def around(value: float, by_block: list[float]) -> Interval:
    """`value` plus and minus what ten disjoint blocks say of it. Only for figures without bias in n."""
    if len(by_block) != BLOCKS:
        raise AssertionError(f"{len(by_block)} blocks, and Student's factor is for {BLOCKS}")
    return of_blocks(value, float(np.std(by_block)))


def of_blocks(value: float, deviation: float) -> Interval:
    """From the deviation of ten blocks as numpy gives it, which divides by ten where an estimate divides by nine."""
    half = STUDENT_9 * deviation / math.sqrt(BLOCKS - 1)
    return Interval(value=value, low=value - half, high=value + half)


def balanced_blocks(labels: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """A block for every image, so that each block holds each class equally often, as the whole does."""
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    blocks = np.empty(len(labels), np.int64)
    blocks[by_class] = np.arange(len(labels)) % count
    return blocks
