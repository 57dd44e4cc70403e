"""What others printed, in words: it stands beside ours for the same model and setting, with its source and its grade."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varbench.plan.cost import PlanWork
    from varbench.plan.steps import Accounting
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
CACHE_FIT, SAVING_FIT, SPEED_FIT = 0.01, 0.02, 0.10
"""How far ours may be from a published figure, and still be said to fit it."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Works:
    """By accounting, what a row's plan costs and what the full model's does."""

    ours: Mapping[Accounting, PlanWork]
    full: Mapping[Accounting, PlanWork]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A published figure, and what stands beside it."""

    figure: str
    printed: str
    ours: str
    fits: bool


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


def by_plan(figures: Mapping[str, float], works: Works) -> Iterator[Beside]:
    """The figures that a plan says something about."""
    ours, full = works.ours, works.full
    if (megabytes := figures.get("kv_mb")) is not None:
        caches = {
            "upstream": ours["upstream"].state_end / MIB,
            "lossless": ours["lossless"].state_end / MIB,
            "lossless at its peak": ours["lossless"].state_peak / MIB,
        }
        name, nearest = min(caches.items(), key=lambda item: abs(item[1] - megabytes))
        off = nearest / megabytes - 1
        text = f"nearest {name}, {nearest:,.1f} MiB ({off:+.1%})"
        yield Beside(figure="kv_mb", printed=f"cache {megabytes:,.0f} MB", ours=text, fits=abs(off) <= CACHE_FIT)
    if (saving := figures.get("kv_saving")) is not None:
        saved = 1 - ours["upstream"].state_end / full["upstream"].state_end
        text = f"{saved:.1%}, upstream against upstream"
        fits = abs(saved - saving) <= SAVING_FIT
        yield Beside(figure="kv_saving", printed=f"cache saving {saving:.0%}", ours=text, fits=fits)
    if (speedup := figures.get("speedup")) is not None and ours["lossless"] != full["lossless"]:
        less = full["lossless"].transformer_flops / ours["lossless"].transformer_flops
        text = f"{less:.2f}x less work in the transformer"
        yield Beside(
            figure="speedup", printed=f"speedup {speedup:g}x", ours=text, fits=abs(less / speedup - 1) <= SPEED_FIT
        )


def fits_text(fits: bool) -> str:
    return "fits" if fits else "does not fit"
