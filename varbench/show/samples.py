"""Sample grids: the full model on top, every row under it with the same noise and classes, and the difference."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from varbench.show.drawn_rows import MOST_ROWS, label
from varbench.show.entries import Block, Entry


@dataclass(frozen=True, kw_only=True)
class Grid:
    name: str
    png: str  # base64
    note: str
    comparable: bool  # same noise and classes as the full model's grid
    classes: str = ""  # names, in the order of the images


def grids_of(block: Block) -> list[Grid]:
    """One grid per row that kept one, the full model first."""
    entries = [entry for entry in block.entries if _png(entry) is not None][:MOST_ROWS]
    top = next((entry for entry in entries if entry.is_full), None)
    grids = []
    for entry in sorted(entries, key=lambda entry: entry is not top):
        png, samples = _png(entry), entry.first.samples
        assert png is not None
        assert samples is not None
        alike = top is not None and top.first.samples is not None and _alike(entry, top)
        distance = entry.first.distance
        notes = []
        if entry is not top and distance is not None:
            if distance.psnr is not None:
                notes.append(f"PSNR {distance.psnr:.1f} dB")
            if distance.equal_tokens is not None:
                notes.append(f"{distance.equal_tokens:.0%} of tokens equal")
        if entry is not top and not alike:
            notes.append("other noise or classes than the full model's grid")
        grids.append(
            Grid(
                name=label(entry),
                png=png,
                note=", ".join(notes),
                comparable=alike and entry is not top,
                classes=", ".join(samples.classes),
            )
        )
    return grids


def sheet(grids: list[Grid]) -> bytes:
    """All grids under each other with their differences beside them, as one PNG for a paper or a talk."""
    from PIL import Image, ImageChops, ImageDraw

    images = [Image.open(io.BytesIO(base64.b64decode(grid.png))).convert("RGB") for grid in grids]
    gap, line = 12, 18
    width = max(image.width for image in images) * 2 + 3 * gap
    page = Image.new("RGB", (width, sum(image.height + line + gap for image in images) + gap), "white")
    draw = ImageDraw.Draw(page)
    y = gap
    for grid, image in zip(grids, images, strict=True):
        draw.text((gap, y), f"{grid.name}  {grid.note}"[: width // 6], fill="black")
        page.paste(image, (gap, y + line))
        if grid.comparable:
            page.paste(ImageChops.difference(image, images[0]), (image.width + 2 * gap, y + line))
        y += image.height + line + gap
    out = io.BytesIO()
    page.save(out, "PNG", compress_level=4)  # as small as by the default, in half the time
    return out.getvalue()


def _png(entry: Entry) -> str | None:
    samples = entry.first.samples
    return samples.png if samples is not None and entry.complete else None


def _alike(entry: Entry, top: Entry) -> bool:
    mine, theirs = entry.first.samples, top.first.samples
    assert mine is not None
    assert theirs is not None
    same_seed = entry.first.protocol.seed == top.first.protocol.seed
    return same_seed and (mine.labels, mine.columns) == (theirs.labels, theirs.columns)
