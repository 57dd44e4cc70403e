"""Whether a method's classes are those of its labels: another order of the classes is no worse image, and a bad score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEWEST = 5
"""Images a class; of fewer, some order fits by chance."""


class Fit(NamedTuple):
    right: float
    """Share of images that are judged to be of the class that they were asked for."""
    reordered: float
    """The same if the classes stood in the order that fits best."""
    asked: int
    shown: int
    """What most images of class `asked` show in that order, of the class where most do."""


def class_order(labels_N: NDArray[np.int64], judged_N: NDArray[np.int64], *, classes: int) -> Fit | None:
    """None where there are too few images to tell."""
    if len(labels_N) < FEWEST * classes:
        return None
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels_N, judged_N), 1)
    asked, shown = linear_sum_assignment(counts, maximize=True)
    moved = np.where(asked == shown, -1, counts[asked, shown])
    example = int(moved.argmax())
    return Fit(
        right=float(np.trace(counts)) / len(labels_N),
        reordered=float(counts[asked, shown].sum()) / len(labels_N),
        asked=int(asked[example]),
        shown=int(shown[example]),
    )
