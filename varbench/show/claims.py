"""Claims: a plugin says which row should be better than which, and a report's records say whether it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varbench.base import stats
from varbench.record import Record
from varbench.record.sections import Section, Table, Text
from varbench.show import formatting
from varbench.show.entries import Block, Entry, blocks_of, need_seeds, score_difference, score_label

HOLDS, DOES_NOT, NOT_SHOWN = "holds", "does not hold", "no difference shown"
COLUMNS = ("claim", "measured", "here")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one row, by its name, has a better headline score than another."""

    text: str
    better: str
    worse: str


def judged(title: str, claims: Sequence[Claim], records: Sequence[Record]) -> list[Section]:
    """A section for each block of like conditions that has rows of any of the claims; the others' claims are left out."""
    found = []
    for block in blocks_of(records):
        by_name = {entry.name: entry for entry in block.everything if entry.believable}
        rows = [
            (claim.text, *_beside(by_name[claim.better], by_name[claim.worse], block))
            for claim in claims
            if block.headline is not None and claim.better in by_name and claim.worse in by_name
        ]
        if rows:
            found.append(Section(title=title, parts=[Text(text=_note(block)), Table(columns=COLUMNS, rows=rows)]))
    return found


def _note(block: Block) -> str:
    assert block.headline is not None
    seeds = max(len(entry.complete) for entry in block.entries)
    start = f"{block.title}. Differences are in {score_label(block.headline)}, "
    if seeds == 1:
        return f"{start}from one seed: another may turn them around, so rows of different trainings decide no claim."
    return (
        f"{start}of the same seed, data order and noise on both sides; their 95 % intervals are over {seeds} seeds. A claim "
        "holds, or does not, only where the whole interval is on one side."
    )


def _beside(better: Entry, worse: Entry, block: Block) -> tuple[str, str]:
    """What was measured of a pair, and whether the first is better."""
    assert block.headline is not None
    gap = score_difference(better, worse, block.headline.name) if better.seeds & worse.seeds else None
    both = [entry.score(block.headline.name) for entry in (better, worse)]
    if gap is None or both[0] is None or both[1] is None:
        return "-", NOT_SHOWN
    own, other, apart = map(formatting.with_interval, (both[0], both[1], gap))
    text = f"{better.name} {own}, {worse.name} {other}; difference {apart}"
    if need_seeds(better, worse):
        return text, NOT_SHOWN
    judgement = stats.judge_difference(gap, better=block.headline.better)
    return text, {"better": HOLDS, "worse": DOES_NOT, "same": NOT_SHOWN}[judgement]
