"""The page: what the templates need, from blocks of entries. One file that loads nothing."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from varbench.errors import UserError
from varbench.record import Record, sections
from varbench.show import (
    chart_library,
    charts,
    columns,
    figures_budgets,
    figures_speed,
    figures_study,
    figures_trade_off,
    figures_training,
    figures_work,
    formatting,
    header_footer,
    samples,
    stills,
)
from varbench.show.answer import answer, by_loss
from varbench.show.charts import Figure
from varbench.show.drawn_rows import how_many, label
from varbench.show.entries import Block, blocks_of
from varbench.show.payload import packed
from varbench.show.training_notes import training_notes

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_BLOCKS_WITH_FIGURES = 6
TONES = {"better": "better", "worse": "worse", "same": "not told apart"}
FIGURES: tuple[Callable[[Block], Figure | None], ...] = (
    figures_trade_off.quality_against_speed,
    figures_training.full_against_smaller,
    figures_trade_off.quality_against_memory,
    figures_trade_off.quality_against_cache,
    figures_work.plan_maps,
    figures_work.memory_over_steps,
    figures_work.time_per_scale,
    figures_training.quality_over_steps,
    figures_speed.latency_distributions,
    figures_speed.measured_against_predicted,
    figures_training.loss_per_point,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A block with its figures, under the names they have on the page and as files."""

    block: Block
    headings: tuple[columns.Column, ...]
    rows: list[list[columns.Cell]]
    anchor: str
    figures: tuple[tuple[str, Figure], ...]
    grids: tuple[samples.Grid, ...]


@dataclasses.dataclass(frozen=True)
class Pictured:
    """A chart, and its picture, which is waited for."""

    name: str
    spec: charts.Spec
    still: Callable[[], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Against an older report."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Everything that goes onto a page. `encoded` are the records as `to_json` gives them."""

    records: Sequence[Record]
    encoded: Sequence[dict[str, Any]]
    problems: Sequence[str] = ()
    panels: Sequence[sections.Panel] = ()
    silent: Sequence[str] = ()  # why a plugin has no panels
    changes: Changes | None = None


def draw(records: Sequence[Record]) -> list[Drawn]:
    """The blocks with the figures that their records allow."""
    drawn = []
    blocks = blocks_of(records)
    budgets = figures_budgets.over_budgets(blocks[:MOST_BLOCKS_WITH_FIGURES])
    for number, block in enumerate(blocks):
        prefix = "" if number == 0 else f"{number + 1}-"
        found: list[tuple[str, Figure]] = []
        grids: list[samples.Grid] = []
        if number < MOST_BLOCKS_WITH_FIGURES:
            across = [budgets[number]] if number in budgets else []
            made = [
                *across,
                *figures_study.studies(block),
                *(figure for make in FIGURES if (figure := make(block)) is not None),
            ]
            found = [(f"{prefix}{figure.key}", figure) for figure in made]
            grids = samples.grids_of(block)
        headings, rows = columns.table_of(block)
        drawn.append(
            Drawn(
                block=block, headings=headings, rows=rows, anchor=f"block{number + 1}", figures=tuple(found),
                grids=tuple(grids),
            )
        )  # fmt: skip
    return drawn


def ask_for_stills(drawn: Sequence[Drawn], beside: stills.DrawnBeside) -> dict[str, list[Pictured]]:
    """The charts of all figures, by their anchors, and the charts' pictures, which are being drawn."""
    asked: dict[str, list[Pictured]] = {}
    for anchor, figure in (named for part in drawn for named in part.figures):
        asked[anchor] = []
        for number, cell in enumerate(figure.cells):
            spec, name = charts.page_spec(cell), f"{anchor}-{number}"
            still = beside.ask(spec, alt=cell.alt, name=name, columns=figure.columns)
            asked[anchor].append(Pictured(name, spec, still))
    return asked


def page(
    shown: Shown,
    drawn: Sequence[Drawn],
    beside: stills.DrawnBeside,
    *,
    pictured: Mapping[str, Sequence[Pictured]],
    files: Sequence[str] = (),
) -> str:
    """The whole page as one string."""
    records = shown.records
    chart_specs = {chart.name: chart.spec for found in pictured.values() for chart in found}
    entries: list[dict[str, Any]] = []
    places = {id(record): place for place, record in enumerate(records)}
    blocks = [_block(part, pictured, entries, places) for part in drawn]
    panels = [_panel(panel, number, chart_specs, beside) for number, panel in enumerate(shown.panels)]
    payload = packed(shown.encoded, entries, chart_specs)  # while pictures are being drawn
    first = drawn[0].block if drawn else None
    script = _resource("page.js")
    bundle = chart_library.script()
    return _environment().get_template("report.html.j2").render(
        title=f"varbench: {', '.join(header_footer.runs(records)) or 'no records'}",
        subtitle=header_footer.subtitle(records),
        answer=answer(first),
        facts=header_footer.headline_facts([part.block for part in drawn], records),
        contents=_contents(drawn, panels, shown.changes),
        problems=shown.problems,
        blocks=blocks,
        panels=panels,
        silent=shown.silent,
        changes=shown.changes,
        notices=header_footer.notices(records, [part.block for part in drawn]),
        conditions=[header_footer.conditions_facts(part.block) for part in drawn],
        files=files,
        style=_safe(_resource("style.css")),
        script=_safe(script),
        vega=_safe(bundle),
        payload=_safe(payload),
        policy=_policy(bundle, script),
    )  # fmt: skip


def index_page(reports: Sequence[dict[str, Any]]) -> str:
    return (
        _environment()
        .get_template("index.html.j2")
        .render(title="varbench reports", reports=reports, style=_safe(_resource("style.css")), policy=_policy())
    )


def _block(
    part: Drawn, pictured: Mapping[str, Sequence[Pictured]], entries: list[dict[str, Any]], places: dict[int, int]
) -> dict[str, Any]:
    block, rows = part.block, []
    for entry, cells in zip(block.entries, part.rows, strict=True):
        rows.append({
            "name": entry.name, "full": entry.is_full, "trouble": entry.trouble, "cells": cells, "index": len(entries),
        })  # fmt: skip
        which = [places[id(record)] for record in entry.records]
        entries.append({"name": label(entry), "trouble": entry.trouble, "records": which})
    shown = []
    wide = _wide([figure for _, figure in part.figures])
    for (anchor, figure), whole_width in zip(part.figures, wide, strict=True):
        places_of_cells = [
            {"title": cell.title, "chart": chart.name, "still": chart.still}
            for cell, chart in zip(figure.cells, pictured[anchor], strict=True)
        ]
        shown.append({
            "anchor": anchor, "key": figure.key, "title": figure.title, "caption": figure.caption,
            "columns": figure.columns, "cells": places_of_cells, "legend": figure.legend, "wide": whole_width,
        })  # fmt: skip
    return {
        "anchor": part.anchor, "title": block.title, "answer": answer(block), "by_loss": by_loss(block), "rows": rows, "figures": shown,
        "columns": part.headings, "grids": part.grids, "grids_drawn": how_many(block, len(part.grids)),
        "quality_notes": (*block.quality_notes, *training_notes(block)),
        "has_plans": any(figure.key == "plans" for _, figure in part.figures),
    }  # fmt: skip


def _wide(found: Sequence[Figure]) -> list[bool]:
    """Single charts stand two in a line; one without a neighbour has the line to itself, as figures of many cells have."""
    wide = [figure.columns > 1 for figure in found]
    alone: int | None = None
    for place, ends in enumerate([*wide, True]):
        if ends and alone is not None:
            wide[alone] = True
        alone = None if ends or alone is not None else place
    return wide


def _panel(
    panel: sections.Panel, number: int, specs: dict[str, charts.Spec], beside: stills.DrawnBeside
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for place, part in enumerate(panel.section.parts):
        if isinstance(part, sections.Text):
            parts.append({"kind": "text", "text": part.text})
        elif isinstance(part, sections.Table):
            parts.append({"kind": "table", "columns": part.columns, "rows": part.rows})
        elif isinstance(part, sections.Chart):
            name = f"panel{number}-{place}"
            plot = charts.Plot(spec={"width": "container", "height": charts.HEIGHT, **part.spec}, alt=part.alt)
            spec = charts.page_spec(plot, legends=True)
            try:
                still = beside.ask(spec, alt=part.alt, name=name)
                still()
            except UserError as error:
                parts.append({"kind": "text", "text": f"A chart of this panel cannot be shown. {error}"})
                continue
            specs[name] = spec
            parts.append({"kind": "chart", "chart": name, "still": still})
        else:
            parts.append({"kind": "image", "png": base64.b64encode(part.png).decode(), "alt": part.alt})
    return {"anchor": f"panel{number}", "title": panel.section.title, "source": panel.source, "parts": parts}


def _contents(
    drawn: Sequence[Drawn], panels: Sequence[dict[str, Any]], changes: Changes | None
) -> list[tuple[str, str]]:
    links = [("table", "Table")]
    if len(drawn) > 1:
        links = [(part.anchor, part.block.title) for part in drawn[:MOST_BLOCKS_WITH_FIGURES]]
    elif drawn:
        links += [(anchor, figure.title) for anchor, figure in drawn[0].figures]
        links += [("block1-samples", "Samples")] if drawn[0].grids else []
    links += [("changes", changes.title)] if changes is not None else []
    return [*links, *((panel["anchor"], panel["title"]) for panel in panels), ("conditions", "Conditions")]


def _policy(*scripts: str) -> str:
    """Only our own scripts run, and nothing is loaded. Vega compiles its expressions, which needs `unsafe-eval`."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    allowed = " ".join([*hashes, "'unsafe-eval'"] if hashes else ["'none'"])
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("varbench.show"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals.update(marks=formatting.MARKS, tones=TONES)
    environment.filters["drawn"] = lambda still: _safe(still())  # the last that a page waits for
    return environment


def _safe(text: str) -> Any:
    """Our own files and base64 go in as they are; nothing from a record does."""
    from markupsafe import Markup

    return Markup(text)


def _resource(name: str) -> str:
    return resources.files("varbench.show").joinpath("templates", name).read_text(encoding="utf-8")
