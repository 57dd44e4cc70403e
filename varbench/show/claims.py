"""Claims: a plugin says which row should be better than which, and a report's records say whether it is; and choices of a method,
each changed alone, beside the method as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from varbench.base import stats
from varbench.base.stats import Judgement
from varbench.record import Record
from varbench.record.sections import Section, Table, Text
from varbench.show import formatting
from varbench.show.drawn_rows import by_point
from varbench.show.entries import Block, Entry, blocks_of, need_seeds, score_difference, score_label

HOLDS, DOES_NOT, NOT_SHOWN, ONE_SEED = "holds", "does not hold", "no difference shown", "one seed decides nothing"
COLUMNS = ("claim", "measured", "would show from", "here")
WORDS = {"better": "better", "worse": "worse", "same": "not told apart"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one row, by its name, has a better headline score than another."""

    text: str
    better: str
    worse: str


def judged(title: str, claims: Sequence[Claim], records: Sequence[Record]) -> list[Section]:
    """A section with a table for each block of like conditions that has rows of any of the claims; the others' claims are left
    out."""

    def rows_of(block: Block, by_name: Mapping[str, Entry]) -> list[tuple[str, ...]]:
        return [
            (claim.text, *_beside(by_name[claim.better], by_name[claim.worse], block))
            for claim in claims
            if claim.better in by_name and claim.worse in by_name
        ]

    return _section(title, COLUMNS, rows_of, records)


def choices(
    title: str, unchanged: Mapping[str, str], changed: Mapping[str, Mapping[str, str]], records: Sequence[Record]
) -> list[Section]:
    """A section with a table for each block that has rows with one choice changed. `unchanged` are rows as they are, by their
    point; `changed` those at the same points, by what was changed."""
    points = sorted(unchanged, key=by_point)

    def rows_of(block: Block, by_name: Mapping[str, Entry]) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for text, names in changed.items():
            pairs = {
                point: (by_name[names[point]], by_name[unchanged[point]])
                for point in points
                if names.get(point) in by_name and unchanged[point] in by_name
            }
            if pairs:
                found = {point: _changed(*pair, block) for point, pair in pairs.items()}
                cells = [found[point][0] if point in found else "-" for point in points]
                alone = any(len(one.seeds & other.seeds) < 2 for one, other in pairs.values()) and _seeds(block) > 1
                so = _sentence({point: word for point, (_, word) in found.items()})
                rows.append((text, *cells, f"one seed: {so}" if alone else so))
        return rows

    return _section(title, ("changed", *points, "so"), rows_of, records)


def _section(
    title: str,
    columns: tuple[str, ...],
    rows_of: Callable[[Block, Mapping[str, Entry]], list[tuple[str, ...]]],
    records: Sequence[Record],
) -> list[Section]:
    """The rows of every block that is scored and has any, from its entries that may be believed, by name."""
    parts: list[Text | Table] = []
    for block in blocks_of(records):
        by_name = {entry.name: entry for entry in block.everything if entry.believable}
        if block.headline is not None and (rows := rows_of(block, by_name)):
            parts += (Text(text=_note(block)), Table(columns=columns, rows=rows))
    return [Section(title=title, parts=parts)] if parts else []


def _changed(entry: Entry, reference: Entry, block: Block) -> tuple[str, Judgement]:
    """The score with a choice changed, by how much it differs, and whether it is better on these weights."""
    assert block.headline is not None
    own, gap = entry.score(block.headline.name), score_difference(entry, reference, block.headline.name)
    if own is None or gap is None:
        return "-", "same"
    judgement = stats.judge_difference(gap, better=block.headline.better)
    return f"{formatting.number(own.value)} ({'+' if gap.value > 0 else ''}{formatting.with_interval(gap)})", judgement


def _sentence(judged: Mapping[str, Judgement]) -> str:
    by_word: dict[str, list[str]] = {}
    for point, judgement in judged.items():
        by_word.setdefault(WORDS[judgement], []).append(point)
    return "; ".join(f"{', '.join(points)} {word}" for word, points in by_word.items())


def _seeds(block: Block) -> int:
    """The most that any row has."""
    return max(len(entry.complete) for entry in block.everything)


def _note(block: Block) -> str:
    assert block.headline is not None
    seeds = _seeds(block)
    start = f"{block.title}. Differences are in {score_label(block.headline)}, "
    if seeds == 1:
        return (
            f"{start}from one seed of training: words are about these weights, another seed may turn them around, and no claim is "
            "decided."
        )
    return (
        f"{start}of the same seed, data order and noise on both sides; their 95 % intervals are over {seeds} seeds. A claim "
        "holds, or does not, only where the whole interval is on one side."
    )


def _beside(better: Entry, worse: Entry, block: Block) -> tuple[str, str, str]:
    """What was measured of a pair, the smallest difference that would have been seen, and whether the first is better."""
    assert block.headline is not None
    gap = score_difference(better, worse, block.headline.name) if better.seeds & worse.seeds else None
    both = [entry.score(block.headline.name) for entry in (better, worse)]
    if gap is None or both[0] is None or both[1] is None:
        return "-", "-", NOT_SHOWN
    own, other, apart = map(formatting.with_interval, (both[0], both[1], gap))
    text = f"{better.name} {own}, {worse.name} {other}; difference {apart}"
    if need_seeds(better, worse):
        return text, "-", ONE_SEED
    judgement = stats.judge_difference(gap, better=block.headline.better)
    least = formatting.number((gap.high - gap.low) / 2)
    return text, least, {"better": HOLDS, "worse": DOES_NOT, "same": NOT_SHOWN}[judgement]
