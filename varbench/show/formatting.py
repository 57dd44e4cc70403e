"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from varbench.base.stats import Interval

MARKS = {"better": "▲", "worse": "▼", "same": "≈"}
"""How a figure compares with the full model's, beyond the noise."""

WITH_DECODER = "*"
"""Marks a time, and a ratio of times, with the decoder where the column is without."""


def some(texts: Iterable[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    texts = list(texts)
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def number(value: float) -> str:
    """Three digits or so, never an exponent for what a table usually holds."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def times(figure: Interval) -> str:
    """`1.53x ± 0.02`, of a ratio."""
    return f"{figure.value:.2f}x ± {(figure.high - figure.low) / 2:.2f}"


def with_interval(figure: Interval) -> str:
    """`5.12 ± 0.20`, with the half-width to the same places as the figure."""
    half = (figure.high - figure.low) / 2
    text = number(figure.value)
    if not half:
        return text
    places = len(text.partition(".")[2])
    return f"{text} ± {half:.{places}f}" if "e" not in text and round(half, places) else f"{text} ± {half:.1g}"


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value / 1e-9:.0f} ns"


def size(value: float) -> str:
    """Binary units, as every memory figure here."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:.0f} B"


def counted(value: float, unit: str) -> str:
    """Decimal units: FLOPs, parameters."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{number(value / scale)} {prefix}{unit}".rstrip()
    return f"{value:.0f} {unit}".rstrip()


def what_marks_mean() -> str:
    better, worse, same = (MARKS[judgement] for judgement in ("better", "worse", "same"))
    return f"{better} {worse} better or worse than the full model beyond the noise, {same} no difference shown."
