"""The rows that the figures of a block draw: which of them, under which label, in which colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from varbench.show.charts import INVALID, NEUTRAL, PALETTE, Swatch, colour, swatches
from varbench.show.entries import Block, Entry

MOST_ROWS = 12  # figures with a place for each row; more would not be read
MOST_POINTS = 300
MOST_SWATCHES = 12


def colours_of(block: Block) -> dict[str, str]:
    """One colour per family in every figure of a block: the full model is neutral, the rest follow the palette."""
    full = {entry.family for entry in block.entries if entry.is_full}
    families = list(dict.fromkeys(entry.family for entry in block.entries if entry.family not in full))
    colours = {family: PALETTE[place % len(PALETTE)] for place, family in enumerate(families)}
    return {**dict.fromkeys(full, NEUTRAL), **colours}


def points_of(block: Block) -> Sequence[Entry]:
    """The rows of scatter plots, in the table's order, which has the believable and the best first."""
    return block.entries[:MOST_POINTS]


def lines_of(block: Block) -> list[Entry]:
    """The rows of figures that have a place for each: the full model first, then the table's order."""
    return [entry for entry in block.entries if entry.complete][:MOST_ROWS]


def how_many(block: Block, count: int) -> str:
    """The end of a caption where not every row is drawn."""
    total = len(block.entries)
    return "" if count == total else f" {count} of {total} rows are drawn."


def by_point(point: str) -> tuple[int, int, str]:
    """What the trainer calls the full model first, then by number, the largest first."""
    digits = "".join(letter for letter in point if letter.isdigit())
    return (point != "full", -int(digits or 0), point)


def label(entry: Entry) -> str:
    upstream = entry.first.protocol.accounting == "upstream" and "upstream" not in entry.name
    return f"{entry.name} (upstream)" if upstream else entry.name


def family_legend(block: Block, points: Sequence[Mapping[str, Any]]) -> tuple[Swatch, ...]:
    """The families of the points, and how a row that is not valid looks."""
    found = swatches(colour("family", colours_of(block), [point for point in points if point["valid"]]))
    more = len(found) - MOST_SWATCHES
    if more > 0:
        rest = Swatch(name=f"and {more} more, by name in the table and on hover", symbol="…")
        found = (*found[:MOST_SWATCHES], rest)
    doubted = any(not point["valid"] for point in points)
    return (*found, Swatch(name="not valid", colour=INVALID, symbol="✚")) if doubted else found
