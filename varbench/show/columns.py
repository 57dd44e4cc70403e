"""The columns of the table, defined once for the page, Markdown, LaTeX and CSV. A missing figure carries its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from varbench.base.stats import Interval
from varbench.show import formatting
from varbench.show.entries import Block, Entry, ended, judge_quality, judge_speed, recipe_of, score_label
from varbench.show.held_against import held
from varbench.show.published import figures_text, source_text
from varbench.show.score_differences import interval_of


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one cell shows. Without text it is a dash, and `note` says why."""

    text: str | None
    note: str = ""
    sort: float | str | None = None
    interval: Interval | None = None  # of a figure that has one
    tone: str = ""  # `better`, `worse`, `same` than the full model; `quiet`


@dataclass(frozen=True, kw_only=True)
class Column:
    key: str
    heading: str
    note: str
    cell: Callable[[Entry, Block], Cell]
    numeric: bool = True


def columns_of(block: Block) -> tuple[Column, ...]:
    """The columns of a block's table; the score's heading is its honest name."""
    batch = block.conditions["batch"]
    headline = block.headline
    if headline is None:
        quality, way = "quality", "no row here has a score"
    else:
        quality, way = (
            score_label(headline),
            f"{block.quality_notes[0]} By {headline.implementation}",
        )
    plugin_columns = sorted({name for entry in block.entries for record in entry.complete for name in record.metrics})
    extra = [
        Column(key=name, heading=name, note="a plugin's own column", cell=_metric(name)) for name in plugin_columns
    ]
    return (
        Column(key="row", heading="method", note="plugins of the row", cell=_method, numeric=False),
        Column(key="setting", heading="setting", note="recipe, point, parameters", cell=_setting, numeric=False),
        Column(key="quality", heading=quality, note=f"{way}; 95 % interval", cell=_quality),
        Column(
            key="speedup",
            heading="speedup",
            cell=_speedup("lossless"),
            note=f"transformer, batch {batch}, against the full model without needless cache; 95 % interval over the processes of "
            "all rows with this plan",
        ),
        Column(
            key="speedup_upstream",
            heading="vs upstream",
            cell=_speedup("upstream"),
            note=f"transformer, batch {batch}, against the full model with the official code's cache waste",
        ),
        Column(
            key="batch",
            heading=f"time, batch {batch}",
            note="transformer only",
            cell=_batch_time,
        ),
        Column(key="latency", heading="latency, batch 1", note="end to end", cell=_time("end_to_end", "latency")),
        Column(
            key="memory",
            heading="peak memory",
            note="peak of torch's allocator, weights included",
            cell=_peak,
        ),
        Column(
            key="state",
            heading="state",
            note="largest state across scales, measured; that of the last step on hover",
            cell=_state,
        ),
        Column(
            key="kept",
            heading="entries kept",
            note="cache entries that the last step reads, as a share of what the full model reads; of all tokens on hover",
            cell=_kept,
        ),
        Column(key="parameters", heading="params", note="all backbones that stay loaded", cell=_parameters),
        Column(
            key="work",
            heading="work",
            note="FLOPs really computed, as a share of the full model's",
            cell=_work,
        ),
        *extra,
        Column(key="validity", heading="validity", note="may the row be believed", cell=_validity, numeric=False),
        Column(
            key="provenance",
            heading="provenance",
            note="where the method comes from",
            cell=_provenance,
            numeric=False,
        ),
        Column(
            key="published",
            heading="published",
            note="same model and setting, with its grade; `compared` is the line whose settings are the run's, and hover says how "
            "it comes out",
            cell=_published,
            numeric=False,
        ),
    )


def table_of(block: Block) -> tuple[tuple[Column, ...], list[list[Cell]]]:
    """The columns and the cells. One of published figures, or of entries kept, appears where a row has any to tell."""
    columns = columns_of(block)
    rows = [[_doubted(column.cell(entry, block), entry) for column in columns] for entry in block.entries]
    idle: dict[str, set[str | None]] = {"published": {None}, "kept": {None, "100%"}}
    shown = [at for at, column in enumerate(columns) if {row[at].text for row in rows} - idle.get(column.key, set())]
    return tuple(columns[at] for at in shown), [[row[at] for at in shown] for row in rows]


def _doubted(cell: Cell, entry: Entry) -> Cell:
    """Without better or worse where the row cannot be believed."""
    return cell if entry.believable else dataclasses.replace(cell, tone="")


def why(entry: Entry, *paths: str) -> str:
    """Why a figure is missing: the first reason along its path, in the first repeat that has one."""
    for record in entry.records:
        for path in paths:
            try:
                return record.why(path)
            except ValueError:
                continue
    return "not recorded"


def _method(entry: Entry, block: Block) -> Cell:
    notes = [f"{len(entry.records)} repeats"] if len(entry.records) > 1 else []
    notes += ["upstream accounting"] if entry.first.protocol.accounting == "upstream" else []
    name = " + ".join(plugin.name for plugin in entry.first.row.plugins)
    return Cell(text=name, note=", ".join(notes), sort=entry.name)


def _setting(entry: Entry, block: Block) -> Cell:
    row = entry.first.row
    setting = "/".join(part for part in (recipe_of(entry.first), row.point) if part)
    joined = [part.partition(":")[0].partition("@")[2] for part in row.row.split("+")[1:]]
    setting = " + ".join([setting, *joined]) if any(joined) else setting
    given = " ".join(f"{name}={value}" for name, value in row.params.items())
    text = " ".join(part for part in (setting, given) if part)
    if entry.is_full:
        text = str(row.denominator)
    return Cell(text=text or None, note="the method has one setting" if not text else "", sort=text)


def _quality(entry: Entry, block: Block) -> Cell:
    headline, quality = block.headline, None
    if headline is not None:
        quality = entry.score(headline.name)
    if headline is None or quality is None:
        scores = entry.first.quality.scores if entry.first.quality else ()
        named = [score.reason for score in scores if headline and score.name == headline.name and score.reason]
        return Cell(text=None, note=named[0] if named else why(entry, "quality"))
    full = block.full.get("lossless")
    tone = judge_quality(entry, full) if full is not None and not entry.is_full else None
    return Cell(text=formatting.with_interval(quality), sort=quality.value, interval=quality, tone=tone or "")


def _speedup(accounting: str) -> Callable[[Entry, Block], Cell]:
    def cell(entry: Entry, block: Block) -> Cell:
        speed = entry.speeds.get(accounting)
        if speed is None:
            if accounting not in block.full:
                return Cell(text=None, note=f"the full model with {accounting} accounting was not measured")
            return Cell(text=None, note=why(entry, "timing"))
        tone = judge_speed(entry, accounting) if not entry.is_full else None
        speedup = speed.ratio
        span = f"{speedup.low:.3f} to {speedup.high:.3f}" if speedup.low != speedup.high else ""
        if speed.processes > speed.own_processes and span:
            span += f", over {speed.processes} processes; by its own {formatting.times(speed.own)}"
        mark, words = _with_decoder(entry)
        return Cell(
            text=f"{speedup.value:.2f}x{mark}", note=f"{span}{words}", sort=speedup.value, interval=speedup, tone=tone or ""
        )  # fmt: skip

    return cell


def _with_decoder(entry: Entry) -> tuple[str, str]:
    """Mark and words for a figure that includes the decoder, on both sides of a ratio."""
    if entry.timed == "transformer":
        return "", ""
    return (
        formatting.WITH_DECODER,
        " with the decoder: the row replaces the loop, so there is no transformer to time alone",
    )


def _batch_time(entry: Entry, block: Block) -> Cell:
    cell = _time(entry.timed, "throughput")(entry, block)
    mark, words = _with_decoder(entry)
    return dataclasses.replace(cell, text=f"{cell.text}{mark}", note=f"{cell.note}{words}") if cell.text else cell


def _time(column: str, regime: str) -> Callable[[Entry, Block], Cell]:
    def cell(entry: Entry, block: Block) -> Cell:
        found = entry.seconds(column, regime)
        if found is None:
            return Cell(text=None, note=why(entry, "timing") if entry.first.timing is None else "not measured")
        return Cell(text=formatting.seconds(found.value), note=_span(found), sort=found.value, interval=found)

    return cell


def _span(found: Interval) -> str:
    return f"{formatting.seconds(found.low)} to {formatting.seconds(found.high)}"


def _peak(entry: Entry, block: Block) -> Cell:
    value = entry.memory("peak_bytes")
    if value is None:
        return Cell(text=None, note=why(entry, "memory", "memory.torch_allocated_bytes"))
    return Cell(text=formatting.size(value), sort=value)


def _state(entry: Entry, block: Block) -> Cell:
    value, end = entry.memory("state_peak_bytes"), entry.memory("state_end_bytes")
    if value is None or end is None:
        return Cell(text=None, note=why(entry, "memory", "memory.state_peak_bytes"))
    return Cell(text=formatting.size(value), note=f"{formatting.size(end)} in the last step", sort=value)


def _kept(entry: Entry, block: Block) -> Cell:
    plan = entry.first.plan
    if plan is None or plan.read_share is None or plan.token_share is None:
        return Cell(text=None, note=why(entry, "plan", "plan.read_share"))
    note = f"{plan.token_share:.0%} of all tokens, as papers count that store the last scale"
    return Cell(text=f"{plan.read_share:.0%}", note=note, sort=plan.read_share)


def _parameters(entry: Entry, block: Block) -> Cell:
    counts = entry.first.model.parameters
    if not counts:
        return Cell(text=None, note="the row did not load a model")
    note = ", ".join(f"{name} {formatting.counted(value, '')}" for name, value in counts.items())
    return Cell(text=formatting.counted(sum(counts.values()), ""), note=note, sort=sum(counts.values()))


def _work(entry: Entry, block: Block) -> Cell:
    work = entry.work
    if work is None or work.flops is None:
        return Cell(text=None, note=why(entry, "trace", "trace.flops"))
    full = block.full.get("lossless")
    note = formatting.counted(work.flops, "FLOP") + f" for a batch of {block.conditions['batch']}"
    if work.layer_tokens is not None:
        note += f", {work.layer_tokens:,} layers x tokens"
    note += "" if entry.first.trace else "; planned, not run"
    if full is None or full.work is None or not full.work.flops:
        return Cell(text=formatting.counted(work.flops, "FLOP"), note=note, sort=work.flops)
    text = f"{work.flops / full.work.flops:.0%}"
    if (bounds := entry.bounds(full.work.flops)) is not None:
        went = f"; here {', '.join(f'{images} images {way}' for way, images in work.ways.items())}" if work.ways else ""
        text, note = f"{text} ({bounds})", f"depends on content: {bounds} of the work{went}; {note}"
    return Cell(text=text, note=note, sort=work.flops)


def _metric(name: str) -> Callable[[Entry, Block], Cell]:
    def cell(entry: Entry, block: Block) -> Cell:
        value = entry.first.metrics.get(name)
        if value is None:
            return Cell(text=None, note="the plugin gave no figure")
        if value.value is None:
            return Cell(text=None, note=value.reason or "no figure")
        span = interval_of(value)
        note = f"mean over {value.n:,} images, {value.better} is better"
        return Cell(text=formatting.with_interval(span), note=note, sort=value.value, interval=span)

    return cell


def _validity(entry: Entry, block: Block) -> Cell:
    if entry.believable:
        checked = "; ".join(entry.first.validity.reasons)
        return Cell(text="valid", note=checked, sort="0")
    word = ended(next((record for record in entry.records if record.status != "complete"), entry.first))
    return Cell(text=word, note=entry.trouble or "", sort=f"1{word}", tone="worse")


def _provenance(entry: Entry, block: Block) -> Cell:
    provenance = entry.first.provenance
    if provenance is None:
        return Cell(text=None, note=why(entry, "provenance"))
    return Cell(text=provenance.kind, note=provenance.note or "", sort=provenance.kind)


def _published(entry: Entry, block: Block) -> Cell:
    found = held(entry)
    if not found:
        return Cell(text=None, note="no published figure for this model and setting")
    text = "; ".join(
        f"{figures_text(one.line.figures)} [{one.line.grade}{', compared' * one.compared}]" for one in found
    )
    note = "; ".join(
        ", ".join(filter(None, (f"{figures_text(one.line.figures)}: {source_text(one.line)}", one.words)))
        for one in found
    )
    return Cell(text=text, note=note, sort=text, tone="quiet")
