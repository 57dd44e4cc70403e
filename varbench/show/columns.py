"""The columns of the table, defined once for terminal, page, Markdown, LaTeX and CSV. A missing figure carries its reason."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from varbench.base.stats import Interval
from varbench.show import formatting, speedups
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
    terminal: str | None = None  # what a terminal, which has no hover to say the rest, shows in the place of the text


@dataclass(frozen=True)
class Column:
    key: str
    heading: str
    note: str
    cell: Callable[[Entry, Block], Cell]
    _: KW_ONLY
    numeric: bool = True
    judged: bool = False  # better or worse than the full model's, or no difference was shown
    terminal: str | None = None  # its heading on a terminal, which has little width; None is not there
    on_page: bool = True


def columns_of(block: Block) -> tuple[Column, ...]:
    """All columns of a block's tables; the score's heading is its honest name."""
    batch = block.conditions["batch"]
    headline = block.headline
    if headline is None:
        quality, way = "quality", "no row here has a score"
    else:
        quality, way = (
            score_label(headline),
            f"{block.quality_notes[0]} By {headline.implementation}",
        )
    metrics = sorted({name for entry in block.everything for record in entry.complete for name in record.metrics})
    against = f"transformer, batch {batch}, against the full model"
    return (
        Column("row", "method", "plugins of the row", _method, numeric=False, terminal="row"),
        Column("setting", "setting", "recipe, point, parameters", _setting, numeric=False),
        Column("quality", quality, f"{way}; 95 % interval", _quality, judged=True, terminal=textwrap.fill(quality, 20)),
        Column("accuracy", "accuracy", "by the judge of classes", _accuracy, terminal="accuracy", on_page=False),
        Column(
            "speedup",
            "speedup",
            f"{against} without needless cache; 95 % interval over the processes of all rows with this plan",
            _speedup("lossless"),
            judged=True,
            terminal="speedup",
        ),
        Column(
            "speedup_upstream",
            "vs upstream",
            f"{against} with the official code's cache waste",
            _speedup("upstream"),
            judged=True,
            terminal="vs upstream",
        ),
        Column("batch", f"time, batch {batch}", "transformer only", _batch_time, terminal="batch\ntime"),
        Column("latency", "latency, batch 1", "end to end", _time("end_to_end", "latency"), terminal="latency"),
        Column(
            "latency_speedup",
            "latency, times faster",
            "end to end, batch 1, each call against the full model's beside it; 95 % interval; in what state the machine was on hover",
            _latency_speedup,
        ),
        Column("memory", "peak memory", "peak of torch's allocator, weights included", _peak),
        Column(
            "state",
            "state",
            "largest state across scales, measured; that of the last step on hover",
            _state,
            terminal="state\npeak",
        ),
        Column("state_end", "state at the end", "that of the last step", _state_end, terminal="end", on_page=False),
        Column(
            "resident",
            "resident growth",
            "a side figure and none of the method's: by how much the process's resident memory rose at most in such a call. The "
            "C library's heap keeps what it frees and uses it again, so it differs from run to run, and is in no mark",
            _resident,
        ),
        Column(
            "kept",
            "entries kept",
            "cache entries that the last step reads, as a share of what the full model reads; of all tokens on hover",
            _kept,
        ),
        Column("parameters", "params", "all backbones that stay loaded", _parameters),
        Column("work", "work", "FLOPs really computed, as a share of the full model's", _work, terminal="work"),
        *(
            Column(name, name, "a plugin's own column", _metric(name), terminal=name.replace(".", "\n", 1))
            for name in metrics
        ),
        Column("validity", "validity", "may the row be believed", _validity, numeric=False, terminal=""),
        Column("provenance", "provenance", "where the method comes from", _provenance, numeric=False),
        Column(
            "published",
            "published",
            "same model and setting, with its grade; `compared` is the line whose settings are the run's, and hover says how "
            "it comes out",
            _published,
            numeric=False,
        ),
    )


def table_of(block: Block) -> tuple[tuple[Column, ...], list[list[Cell]]]:
    """The page's columns and cells. Those of published figures, entries kept and resident memory appear where a row has any
    to tell."""
    columns = [column for column in columns_of(block) if column.on_page]
    rows = [_cells(entry, block, columns) for entry in block.entries]
    idle: dict[str, set[str | None]] = {"published": {None}, "kept": {None, "100%"}, "resident": {None}}
    shown = [at for at, column in enumerate(columns) if {row[at].text for row in rows} - idle.get(column.key, set())]
    return tuple(columns[at] for at in shown), [[row[at] for at in shown] for row in rows]


def terminal_table_of(block: Block) -> tuple[list[Column], list[list[Cell]]]:
    """The same of the terminal, where studies' rows stand below the others."""
    columns = [column for column in columns_of(block) if column.terminal is not None]
    return columns, [_cells(entry, block, columns) for entry in block.everything]


def _cells(entry: Entry, block: Block, columns: Sequence[Column]) -> list[Cell]:
    """A row of a table; without better or worse where the row cannot be believed."""
    cells = [column.cell(entry, block) for column in columns]
    return cells if entry.believable else [dataclasses.replace(cell, tone="") for cell in cells]


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
    return Cell(text=name, terminal=entry.name, note=", ".join(notes), sort=entry.name)


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


def _accuracy(entry: Entry, block: Block) -> Cell:
    accuracy = entry.score("class accuracy")
    if accuracy is None:
        return Cell(text=None, note=why(entry, "quality"))
    return Cell(text=f"{accuracy.value:.1%}", sort=accuracy.value, interval=accuracy)


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
        if speed.held_up:
            span += "; calls of which it is were held up, without which it may be"
            span += f" {-math.expm1(-speedup.down):.1%} lower or {math.expm1(speedup.up):.1%} higher"
        span += f"; {speed.left_out} pairs of calls of which one was held up are left out" if speed.left_out else ""
        mark, words = _with_decoder(entry)
        text, half = f"{speedup.value:.2f}x{mark}", (speedup.high - speedup.low) / 2
        return Cell(
            text=text,
            terminal=f"{text} ± {half:.2f}" if half else text,
            note=f"{span}{words}",
            sort=speedup.value,
            interval=speedup,
            tone=tone or "",
        )

    return cell


def _latency_speedup(entry: Entry, block: Block) -> Cell:
    full, of = block.full.get("lossless"), ("end_to_end", "latency")
    if full is None:
        return Cell(text=None, note="the full model was not measured")
    found = speedups.speedup(entry.alike, full.complete, accounting="lossless", column=of[0], regime=of[1])
    if found is None:
        return Cell(text=None, note=why(entry, "timing"))
    found = speedups.ALIKE if entry is full else found
    note = f"{found.low:.3f} to {found.high:.3f}" if found.degrees else ""
    if seconds := sorted(map(math.exp, speedups.machine(entry.alike, *of))):
        note += f", where the full model takes {formatting.seconds(seconds[0])} to {formatting.seconds(seconds[-1])}"
    return Cell(text=f"{found.value:.2f}x", note=note, sort=found.value, interval=found)


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
    end = _state_end(entry, block)
    return _of_state(entry, "state_peak_bytes", note=f"{end.text} in the last step")


def _state_end(entry: Entry, block: Block) -> Cell:
    return _of_state(entry, "state_end_bytes")


def _of_state(entry: Entry, name: str, note: str = "") -> Cell:
    """As measured. A terminal, which cannot say why it was not, has the planned one instead: a first look measures none."""
    value = entry.memory(name)
    if value is None:
        planned = getattr(entry.work, name, None)
        reason = why(entry, "memory", "memory.state_peak_bytes")
        return Cell(text=None, terminal=None if planned is None else formatting.size(planned), note=reason)
    return Cell(text=formatting.size(value), note=note, sort=value)


def _resident(entry: Entry, block: Block) -> Cell:
    """Of the row's own repeats, the largest: rows of one plan are no sample of what a heap happens to hold."""
    memories = [record.memory for record in entry.complete if record.memory is not None]
    found = [memory.rss_growth_bytes for memory in memories if memory.rss_growth_bytes is not None]
    if not found:
        return Cell(text=None, note=why(entry, "memory", "memory.rss_growth_bytes"))
    return Cell(text=formatting.size(max(found)), sort=max(found))


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
    text = share = f"{work.flops / full.work.flops:.0%}"
    if (bounds := entry.bounds(full.work.flops)) is not None:
        went = f"; here {', '.join(f'{images} images {way}' for way, images in work.ways.items())}" if work.ways else ""
        text, note = f"{text} ({bounds})", f"depends on content: {bounds} of the work{went}; {note}"
    return Cell(text=text, terminal=share, note=note, sort=work.flops)


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
