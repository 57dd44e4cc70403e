"""Names beside the points of a scatter plot, placed so that no two overlap, nor a name and a point.

A page's chart is as wide as its place, so where a box stands is a line in the width: `share * width + offset`. Two boxes
that are apart at the least and at the greatest width, the same one on the left, are apart at every width between. Names
keep their places only within a range of widths (`RANGES`), for which `place` is asked once each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RANGES = ((220, 380), (380, 560), (560, 10_000))
"""Widths of a plot in pixels. A phone has room for fewer names than a desk."""

LETTER, LINE = 6.6, 14.0
"""Pixels that a letter of 11 px takes at most on average, and a line of them."""

_MARKER = 6.0  # half the width of a point
_MOST_LETTERS = 40
_PLAIN = 16.0  # a name whose near corner is farther from its point than this gets a line to it
_STEPS = sorted(
    ((side, beside, above) for side in (1, -1) for beside in (8, 24, 48, 80) for above in (9, 22, 35, 48, 61, 74, 87, 100, 126, 152)),
    key=lambda step: (step[1] + step[2], -step[0]),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point to be named: `x` is a share of the width, `y` pixels from the top."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle that moves with the width: from `share * width + left` to `share * width + right`."""

    share: float
    left: float
    right: float
    top: float
    bottom: float

    def span(self, width: float) -> tuple[float, float]:
        return self.share * width + self.left, self.share * width + self.right


@dataclass(frozen=True, kw_only=True)
class Name:
    """A name at its place, `dx` and `dy` pixels from the point of `spot`: its near end, at half its height."""

    spot: int
    text: str
    dx: float
    dy: float
    line: bool  # a thin line leads from the point to the name

    @property
    def align(self) -> str:
        return "left" if self.dx > 0 else "right"


def place(spots: Sequence[Spot], *, widths: tuple[float, float], height: float, most: int) -> list[Name]:
    """The names of the first `most` spots that fit, each at the nearest free place, in the order of the spots. No name
    covers a point or a line; a line may run over points and lines. A name for which there is no room is left out."""
    points = [_box(spot, -_MARKER, _MARKER, 0, _MARKER) for spot in spots]
    names: list[Box] = []
    lines: list[Box] = []
    placed: list[Name] = []
    for number, spot in enumerate(spots):
        if len(placed) == most:
            break
        for name in _candidates(number, spot):
            box, line = name_box(name, spot), _line(name, spot)
            inside = all(0 <= left and right <= width for width in widths for left, right in [box.span(width)])
            if not (inside and 0 <= box.top and box.bottom <= height):
                continue
            if all(apart(box, other, widths) for other in (*names, *points, *lines)) and all(
                apart(part, other, widths) for part in line for other in names
            ):
                names.append(box)
                lines += line
                placed.append(name)
                break
    return placed


def name_box(name: Name, spot: Spot) -> Box:
    length = LETTER * len(name.text)
    left = name.dx if name.dx > 0 else name.dx - length
    return _box(spot, left, left + length, name.dy, LINE / 2)


def apart(one: Box, other: Box, widths: tuple[float, float]) -> bool:
    """Whether two boxes do not touch at any width of the range."""
    if one.bottom <= other.top or other.bottom <= one.top:
        return True
    spans = [(one.span(width), other.span(width)) for width in widths]
    return all(a[1] <= b[0] for a, b in spans) or all(b[1] <= a[0] for a, b in spans)


def _candidates(number: int, spot: Spot) -> Iterator[Name]:
    """Places for a name, the nearest first; above before below."""
    text = spot.name if len(spot.name) <= _MOST_LETTERS else f"{spot.name[: _MOST_LETTERS - 1]}…"
    for side, beside, away in _STEPS:
        for dy in (-away, away):
            dx = float(side * beside)
            yield Name(spot=number, text=text, dx=dx, dy=float(dy), line=math.hypot(beside, away) > _PLAIN)


def _line(name: Name, spot: Spot) -> list[Box]:
    """The line to a name, as small boxes along it."""
    if not name.line:
        return []
    parts = int(math.hypot(name.dx, name.dy) // 4)
    shares = [part / parts for part in range(2, parts)]
    return [_box(spot, name.dx * share - 1, name.dx * share + 1, name.dy * share, 1) for share in shares]


def _box(spot: Spot, left: float, right: float, middle: float, half: float) -> Box:
    return Box(share=spot.x, left=left, right=right, top=spot.y + middle - half, bottom=spot.y + middle + half)
