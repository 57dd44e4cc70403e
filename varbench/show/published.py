"""What others printed, in words: it stands beside ours for the same model and setting, with its source and its grade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varbench.policies import Published
    from varbench.record import PublishedLine, Record

FORMS = {
    "fid": "FID {:.2f}",
    "is": "IS {:g}",
    "speedup": "{:g}x",
    "latency_s": "{:.2f} s",
    "memory_mb": "{:,.0f} MB",
    "kv_mb": "cache {:,.0f} MB",
    "kv_saving": "cache saving {:.0%}",
}
"""Figures with a form of their own, in the order of interest."""


def figures_text(figures: Mapping[str, float]) -> str:
    """As in `FID 2.12, 2.6x`; figures of no known form follow under their own names."""
    known = [form.format(figures[name]) for name, form in FORMS.items() if name in figures]
    return ", ".join(known + [f"{name} {value:g}" for name, value in figures.items() if name not in FORMS])


def source_text(line: Published | PublishedLine) -> str:
    """Where the figures were printed, and under what they hold."""
    return ", ".join(filter(None, (line.source, line.conditions)))


def published_for(record: Record) -> tuple[PublishedLine, ...]:
    """What may stand beside a record: a quick look is not compared with what was printed."""
    return () if record.protocol.quick else record.published
