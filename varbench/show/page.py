"""The page: what the templates need, from blocks of entries. One file that loads nothing."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from varbench.record import Record, sections
from varbench.show import (
    charts,
    columns,
    facts,
    figures,
    figures_speed,
    figures_study,
    figures_training,
    figures_work,
    samples,
)
from varbench.show.answer import answer
from varbench.show.charts import Figure
from varbench.show.entries import Block, blocks_of

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_BLOCKS_WITH_FIGURES = 6
MOST_PAYLOAD = 800_000  # characters of records inside the page; above it raw samples stay in their files only
SHARED = ("plan", "training", "model", "protocol", "environment", "provenance", "weights")
GLYPHS = {"better": "▲", "worse": "▼", "same": "≈"}
MOODS = {"better": "better", "worse": "worse", "same": "not told apart"}
FIGURES: tuple[Callable[[Block], Figure | None], ...] = (
    figures.quality_against_speed,
    figures_training.full_against_smaller,
    figures.quality_against_memory,
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
    changes: Changes | None = None


def draw(records: Sequence[Record]) -> list[Drawn]:
    """The blocks with the figures that their records allow."""
    drawn = []
    for number, block in enumerate(blocks_of(records)):
        prefix = "" if number == 0 else f"{number + 1}-"
        found: list[tuple[str, Figure]] = []
        grids: list[samples.Grid] = []
        if number < MOST_BLOCKS_WITH_FIGURES:
            made = [*figures_study.studies(block), *(figure for make in FIGURES if (figure := make(block)) is not None)]
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


def page(shown: Shown, drawn: Sequence[Drawn], *, files: Sequence[str] = ()) -> str:
    """The whole page as one string."""
    records = shown.records
    chart_specs: dict[str, charts.Spec] = {}
    entries: list[dict[str, Any]] = []
    places = {id(record): place for place, record in enumerate(records)}
    blocks = [_block(one, chart_specs, entries, places) for one in drawn]
    panels = [_panel(panel, number, chart_specs) for number, panel in enumerate(shown.panels)]
    first = drawn[0].block if drawn else None
    script = _resource("page.js")
    bundle = vega_bundle()
    return _environment().get_template("report.html.j2").render(
        title=f"varbench: {', '.join(facts.runs(records)) or 'no records'}",
        subtitle=facts.subtitle(records),
        answer=answer(first),
        facts=facts.headline_facts([one.block for one in drawn], records),
        contents=_contents(drawn, panels, shown.changes),
        problems=shown.problems,
        blocks=blocks,
        panels=panels,
        changes=shown.changes,
        notices=facts.notices(records),
        conditions=[facts.conditions_facts(one.block) for one in drawn],
        files=files,
        style=_safe(_resource("style.css")),
        script=_safe(script),
        vega=_safe(bundle),
        payload=_safe(_payload(shown.encoded, entries, chart_specs)),
        policy=_policy(bundle, script),
    )  # fmt: skip


def index_page(reports: Sequence[dict[str, Any]]) -> str:
    return _environment().get_template("index.html.j2").render(
        title="varbench reports", reports=reports, style=_safe(_resource("style.css")), policy=_policy()
    )  # fmt: skip


@functools.cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, as the chart library ships them."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _block(
    one: Drawn, specs: dict[str, charts.Spec], entries: list[dict[str, Any]], places: dict[int, int]
) -> dict[str, Any]:
    block, rows = one.block, []
    for entry, cells in zip(block.entries, one.rows, strict=True):
        rows.append({
            "name": entry.name, "full": entry.is_full, "trouble": entry.trouble, "cells": cells, "index": len(entries),
        })  # fmt: skip
        which = [places[id(record)] for record in entry.records]
        entries.append({"name": figures.label(entry), "trouble": entry.trouble, "records": which})
    shown = []
    wide = _wide([figure for _, figure in one.figures])
    for (anchor, figure), whole_width in zip(one.figures, wide, strict=True):
        places_of_cells = []
        for number, cell in enumerate(figure.cells):
            specs[f"{anchor}-{number}"] = charts.page_spec(cell)
            places_of_cells.append({"title": cell.title, "chart": f"{anchor}-{number}"})
        shown.append({
            "anchor": anchor, "key": figure.key, "title": figure.title, "caption": figure.caption,
            "columns": figure.columns, "cells": places_of_cells, "legend": figure.legend, "wide": whole_width,
        })  # fmt: skip
    return {
        "anchor": one.anchor, "title": block.title, "answer": answer(block), "rows": rows, "figures": shown,
        "columns": one.headings, "grids": one.grids,
        "has_plans": any(figure.key == "plans" for _, figure in one.figures),
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


def _panel(panel: sections.Panel, number: int, specs: dict[str, charts.Spec]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for place, part in enumerate(panel.section.parts):
        if isinstance(part, sections.Text):
            parts.append({"kind": "text", "text": part.text})
        elif isinstance(part, sections.Table):
            parts.append({"kind": "table", "columns": part.columns, "rows": part.rows})
        elif isinstance(part, sections.Chart):
            name = f"panel{number}-{place}"
            specs[name] = charts.page_spec(
                charts.MapCell(spec={"width": "container", "height": charts.HEIGHT, **part.spec}, alt=part.alt),
                legends=True,
            )
            parts.append({"kind": "chart", "chart": name})
        else:
            parts.append({"kind": "image", "png": base64.b64encode(part.png).decode(), "alt": part.alt})
    return {"anchor": f"panel{number}", "title": panel.section.title, "source": panel.source, "parts": parts}


def _payload(
    encoded: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]], specs: dict[str, charts.Spec]
) -> str:
    """What the script needs, deflated: page-sized sets go in whole, larger ones without raw samples and losses."""
    for trimmed in (False, True):
        shared: dict[str, int] = {}
        records = [_shown_record(data, shared, trimmed=trimmed) for data in encoded]
        data = {
            "records": records, "shared": [json.loads(text) for text in shared], "entries": entries, "charts": specs,
            "names": SHARED, "trimmed": trimmed,
        }  # fmt: skip
        packed = base64.b64encode(zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 6)).decode()
        if len(packed) <= MOST_PAYLOAD:
            break
    return packed


def _shown_record(data: dict[str, Any], shared: dict[str, int], *, trimmed: bool) -> dict[str, Any]:
    """The record with its large sections replaced by their place among those that rows share."""
    shown = dict(data)
    if shown["samples"] is not None:
        shown["samples"] = {**shown["samples"], "png": None}  # it is on the page already
    if trimmed and shown["timing"] is not None:
        columns_left = [{k: v for k, v in column.items() if k != "rounds"} for column in shown["timing"]["columns"]]
        shown["timing"] = {**shown["timing"], "columns": columns_left}
    if trimmed and shown["training"] is not None:
        shown["training"] = {k: v for k, v in shown["training"].items() if k != "losses"}
    for name in SHARED:
        if shown[name] is not None:
            shown[name] = shared.setdefault(json.dumps(shown[name]), len(shared))
    return shown


def _contents(
    drawn: Sequence[Drawn], panels: Sequence[dict[str, Any]], changes: Changes | None
) -> list[tuple[str, str]]:
    links = [("table", "Table")]
    if len(drawn) > 1:
        links = [(one.anchor, one.block.title) for one in drawn[:MOST_BLOCKS_WITH_FIGURES]]
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
    environment.globals.update(glyphs=GLYPHS, moods=MOODS)
    return environment


def _safe(text: str) -> Any:
    """Our own files and base64 go in as they are; nothing from a record does."""
    from markupsafe import Markup

    return Markup(text)


def _resource(name: str) -> str:
    return resources.files("varbench.show").joinpath("templates", name).read_text(encoding="utf-8")
