"""Which printed scores a row is compared with, and how it comes out. Some were printed twice, for other checkpoints or settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from varbench.record import PublishedLine
from varbench.record.options import Options
from varbench.show import formatting
from varbench.show.entries import PUBLISHED_IMAGES, Entry, score_label
from varbench.show.published import published_for
from varbench.show.score_differences import named_score

SCORES = {"fid": "FID", "is": "IS"}
FIT = 0.05
"""How far a score of ours may be from a printed one, and still be said to agree."""


@dataclass(frozen=True, kw_only=True)
class HeldLine:
    line: PublishedLine
    compared: bool
    words: str
    """How it comes out, or why it is not compared; empty where the line has no score."""


def why_not(line: PublishedLine, lines: Sequence[PublishedLine], options: Options) -> str | None:
    """Why scores of a run with these options are not held against a line, of all that were printed of a row."""
    differ = [
        f"{name} {wanted:g} there, here {getattr(options, name):g}"
        for name, wanted in line.settings.items()
        if getattr(options, name) != wanted
    ]
    if differ:
        return ", ".join(differ)
    same = [other for other in lines if other.settings and other.figures.keys() & line.figures.keys() & SCORES.keys()]
    if not line.settings and same:
        return f"{same[0].source} says its settings, and this line does not"
    return None


def held(entry: Entry) -> list[HeldLine]:
    """Every line that was printed of a row's setting."""
    lines = published_for(entry.first)
    found = []
    for line in lines:
        if not line.figures.keys() & SCORES.keys():
            found.append(HeldLine(line=line, compared=False, words=""))
        elif (reason := why_not(line, lines, entry.first.protocol)) is not None:
            found.append(HeldLine(line=line, compared=False, words=f"not compared: {reason}"))
        else:
            outcome = "; ".join(_outcomes(line, entry))
            found.append(HeldLine(line=line, compared=bool(outcome), words=outcome or _unscored(entry)))
    return found


def _outcomes(line: PublishedLine, entry: Entry) -> Iterator[str]:
    for figure, name in SCORES.items():
        score, ours = named_score(entry.first, name), entry.score(name)
        if figure in line.figures and score is not None and ours is not None and score_label(score) == name:
            off = ours.value / line.figures[figure] - 1
            agrees = "agrees" if abs(off) <= FIT else f"{off:+.0%}"
            yield f"compared with ours: {name} {formatting.with_interval(ours)}, {agrees}"


def _unscored(entry: Entry) -> str:
    count = entry.first.protocol.images
    if not entry.first.quality:
        return "not compared: the row has no scores"
    return f"not compared: printed scores are FID of {PUBLISHED_IMAGES:,} images, and here are {count:,}"
