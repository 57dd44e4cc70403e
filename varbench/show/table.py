"""The table that a run ends with, for people on a terminal."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from varbench.record import Record, Status
from varbench.show import formatting
from varbench.show.columns import Cell, Column, terminal_table_of
from varbench.show.entries import Block, blocks_of
from varbench.show.header_footer import notices
from varbench.show.training_notes import training_notes

WIDTH = 150
"""Columns of a line at most. A command to copy is never broken."""

_LEAST_NAME = 24  # columns that a row's name may always have


def as_table(records: Sequence[Record]) -> str:
    """One table a block of like conditions; under it what is wrong with rows, and what to do about it."""
    return "\n\n".join(_block(block) for block in blocks_of(records))


def _block(block: Block) -> str:
    from tabulate import tabulate

    columns, found = terminal_table_of(block)
    headings = [column.terminal or "" for column in columns]
    rows = [list(map(_text, columns, cells)) for cells in found]
    rest = sum(_width(heading, cells) for heading, *cells in list(zip(headings, *rows, strict=True))[1:])
    rows = [[_broken(name, max(_LEAST_NAME, WIDTH - rest)), *cells] for name, *cells in rows]
    table = tabulate(rows, headings, tablefmt="simple", disable_numparse=True, stralign="right", colalign=("left",))
    return "\n".join([_wrapped(block.title), "", table, *(_wrapped(note) for note in _notes(block))])


def _notes(block: Block) -> list[str]:
    """What the marks mean, and what the figures were taken from."""
    headline = block.headline
    notes = [formatting.what_marks_mean()]
    notes += (*block.quality_notes, *training_notes(block))
    if any(entry.timed != "transformer" for entry in block.entries):
        notes.append(
            f"{formatting.WITH_DECODER} with the decoder, in the full model's time too: the row has no transformer to time alone."
        )
    full = block.full.get("lossless")
    whole = full.work.flops if full and full.work else None
    bounds = [(entry.name, entry.bounds(whole)) for entry in block.everything] if whole else []
    notes += [f"{name} depends on content: {between} of the work." for name, between in bounds if between]
    if block.itself is not None:
        notes.append(f"The full model against itself: {formatting.times(block.itself)}.")
    floors = next((e.first.quality.floors for e in block.entries if e.first.quality and e.first.quality.floors), {})
    if floors:
        shown = [
            f"{name} {formatting.number(score.value)}" for name, score in floors.items() if score.value is not None
        ]
        notes.append(f"Floors of {headline.name if headline else 'the score'}: {', '.join(shown)}.")
    return notes


def _text(column: Column, cell: Cell) -> str:
    """A judged figure ends with its mark, or with a blank that keeps the column aligned."""
    text = cell.terminal or cell.text
    if text is None:
        return "-"
    return text + (f" {formatting.MARKS.get(cell.tone, ' ')}" if column.judged else "")


def _width(heading: str, cells: Sequence[str]) -> int:
    """What a column takes with its gap: `tabulate` gives a heading two places more than its letters."""
    return max(*(len(line) + 2 for line in heading.split("\n")), *(len(cell) for cell in cells)) + 2


def _broken(name: str, width: int) -> str:
    """A row's name on as many lines as it needs, broken before a `+`, `/` or `:` where it can be."""
    lines = [""]
    for part in re.findall(r"[+/:@,]?[^+/:@,]*", name):
        for piece in textwrap.wrap(part, width, drop_whitespace=False) if len(part) > width else [part]:
            if len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def remarks(records: Sequence[Record]) -> list[str]:
    """One line for every row that failed, is invalid, or should be measured better."""
    lines = []
    for record in records:
        if record.status is not Status.COMPLETE:
            lines.append(f"{record.row.row}: {record.status.replace('_', ' ')}: {record.reason}")
        elif record.validity.verdict != "valid":
            lines.append(f"{record.row.row}: invalid: {'; '.join(record.validity.reasons)}")
    for notice in notices(records, blocks_of(records)):
        if notice["next_command"]:
            also = f" (and {notice['count'] - 1} rows more)" if notice["count"] > 1 else ""
            lines.append(f"{notice['text']}{also}; next: {notice['next_command']}")
    return lines


def report_command(out: Path) -> str:
    """What to type next, whatever the folder is called."""
    return shlex.join(["varbench", "report", "--records", str(out)])
