"""A run cut into portions that can be done apart: rows that share weights, and images of one row.

Noise is of an image, not of a batch or a device, so images come out the same wherever they are made; a portion of them ends
where a scorer's group ends, and what the scorer keeps of its groups is added up by whoever finishes the row.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from varbench.rows import FULL
from varbench.run.messages import GROUP
from varbench.run.prepare import Run


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What one device does in one go."""

    rows: tuple[str, ...]
    images: tuple[int, int] | None = None
    """The first, and the one behind the last, where it is only images of its one row that are made and looked at."""
    after: tuple[Portion, ...] = field(default=(), repr=False)
    """What has to be done before."""

    def __str__(self) -> str:
        if self.images is not None:
            return f"{self.rows[0]}, images {self.images[0]:,} to {self.images[1] - 1:,}"
        return self.rows[0] if len(self.rows) == 1 else f"{self.rows[0]} and {len(self.rows) - 1} more"


def portions(run: Run, *, places: int, done: Collection[str] = ()) -> tuple[Portion, ...]:
    """All that is to be done, in an order that nothing waits in needlessly.

    All rows wait for the full model, whose images they are held against; its own are made by all devices. Those of other rows
    are cut up only where there are fewer rows than devices.
    """
    sets = [(weights, tuple(name for name in weights.rows if name not in done)) for weights in run.weight_sets]
    rows = sum(len(left) for _, left in sets)
    found: list[Portion] = []
    full: tuple[Portion, ...] = ()
    if FULL in run.rows and FULL not in done:
        found += _with_images(run, FULL, places=places, after=())
        full = (found[-1],)
    most = max(1, math.ceil((rows - len(full)) / places))
    for weights, left in sets:
        others = tuple(name for name in left if name != FULL)
        # What is trained in the run is trained once.
        size = len(others) if weights.trains is not None else min(most, run.together or most)
        for first in range(0, len(others), max(1, size)):
            some = others[first : first + size]
            if len(some) == 1 and rows < places and weights.trains is None:
                found += _with_images(run, some[0], places=places // rows, after=full)
            else:
                found.append(Portion(rows=some, after=full))
    return tuple(found)


def _with_images(run: Run, name: str, *, places: int, after: tuple[Portion, ...]) -> list[Portion]:
    """The row, and before it its images, as many groups a device."""
    options = run.options
    group = math.ceil(GROUP / options.batch) * options.batch
    whole = options.images // group if run.is_scored(name) and not options.quick else 0
    share = math.ceil(whole / places) * group
    parts: list[Portion] = []
    if places > 1 and whole > 1:
        parts = [
            Portion(rows=(name,), images=(first, min(first + share, whole * group)))
            for first in range(0, whole * group, share)
        ]
    return [*parts, Portion(rows=(name,), after=(*parts, *after))]
