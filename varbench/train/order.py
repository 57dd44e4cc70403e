"""What is random in a training, as pure functions of (seed, step): equal for every schedule, and nothing to save.

Each use has a stream of its own, so drawing more for one never shifts another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER, _CLASS_DROP, _SCHEDULE, _OTHER = range(4)


def batch_rows(*, seed: int, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Rows of the data that a step sees: every row once before any row twice, each time in a new order."""
    places = np.arange(step * batch, (step + 1) * batch)
    rounds = places // count
    rows = np.empty(batch, np.int64)
    for turn in np.unique(rounds):
        here = rounds == turn
        rows[here] = _permutation(seed, int(turn), count)[places[here] % count]
    return rows


def class_drops(*, seed: int, step: int, batch: int, probability: float) -> NDArray[np.bool_]:
    """Which images of a step lose their class."""
    return stream(_CLASS_DROP, seed, step).random_sample(batch) < probability


def uniforms(*, seed: int, step: int) -> Callable[[int], float]:
    """The random numbers in [0, 1) that a schedule may use at a step, by their place."""
    return lambda place: float(stream(_SCHEDULE, seed, step).random_sample(place + 1)[place])


def other_stream(*, seed: int, step: int) -> np.random.RandomState:
    return stream(_OTHER, seed, step)


def stream(use: int, seed: int, step: int) -> np.random.RandomState:
    return np.random.RandomState([use, seed, step])


@lru_cache(maxsize=2)
def _permutation(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    return stream(_ORDER, seed, turn).permutation(count)
