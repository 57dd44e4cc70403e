"""A published table, row by row beside ours: measured where model and setting match, else foreseen for the paper's card.

What is printed, and which rows make up the table, is the plugins' word (`Settings.published`, `Settings.paper`); they are
asked in processes of their own, and what they say is counted here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from varbench.errors import UserError
from varbench.plan import presets
from varbench.plan.cost import predict, work
from varbench.plan.hardware import Hardware, hardware, sheet_of
from varbench.policies import Paper
from varbench.record import PublishedLine, Record
from varbench.record.options import Options
from varbench.record.sections import Section, Table, Text
from varbench.rows import FULL, UPSTREAM
from varbench.rows.manager import manager
from varbench.run import apart
from varbench.run.defaults import filled_in
from varbench.run.messages import Job, ResolvedRow
from varbench.show import formatting
from varbench.show.entries import PUBLISHED_IMAGES, Block, Entry, blocks_of, score_label
from varbench.show.held_against import FIT, SCORES, why_not
from varbench.show.published import MIB, SPEED_FIT, Works, by_plan, figures_text, source_text
from varbench.show.score_differences import named_score
from varbench.show.table import WIDTH

COLUMNS = ("row", "printed", "grade", "measured here", "by the plan", "", "source")
SOURCES_FIT = 0.01
"""How far two printed scores may be from each other, and still be said to agree."""
CELL = 38
"""Columns of a cell at most, on a terminal."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A paper and its rows, as their plugins say them."""

    paper: Paper
    rows: tuple[ResolvedRow, ...]
    full: ResolvedRow
    left_out: tuple[str, ...]
    """Rows of plugins that are not installed here."""


def asked(plugin: str) -> PaperTable:
    """The table of a plugin's paper. No plugin runs in this process."""
    paper = _resolved(plugin, presets.DEFAULT)[-1].paper
    if paper is None:
        raise UserError(f"{plugin} says nothing of a paper's table; give Settings.paper, as in varbench.policies.Paper")
    known = manager().names()
    there = [text for text in paper.rows if text.partition("@")[0].partition(":")[0] in known]
    found = _resolved(",".join(there), paper.model, batch=paper.batch)
    (full,) = [row for row in found if row.name == FULL]
    left_out = tuple(text for text in paper.rows if text not in there)
    # The other denominator comes unasked.
    wanted = tuple(row for row in found if row.published and (row.name != UPSTREAM or UPSTREAM in paper.rows))
    return PaperTable(paper=paper, rows=wanted, full=full, left_out=left_out)


def _resolved(plugins: str, model: str, *, batch: int = 1) -> tuple[ResolvedRow, ...]:
    """The denominators, and the rows that were asked for."""
    given = {"plugins": plugins, "model": model, "weights": "random", "device": "cpu", "batch": batch}
    options = Options(**filled_in(given))
    return apart.resolved(Job(task="resolving", options=options, model=presets.preset(model).spec))[0].rows


def section(table: PaperTable, records: Sequence[Record]) -> Section:
    """What is printed, line by line, and every disagreement by name."""
    card = hardware(table.paper.hardware)
    lines, disagreements, sources = [], [], dict[str, int]()
    for row in table.rows:
        found = _entry(row, table.paper, records)
        for printed in row.published:
            planned = dict(_by_plan(row, printed, table, card))
            here = dict(_measured(row, printed, found, table.paper, card))
            wrong = [name for name in printed.figures if False in _fits(name, here, planned)]
            right = [name for name in printed.figures if set(_fits(name, here, planned)) == {True}]
            lines.append((
                row.name, figures_text(printed.figures), printed.grade, _cell(here), _cell(planned),
                f"disagrees: {', '.join(wrong)}" if wrong else "agrees" if right else "",
                f"[{sources.setdefault(source_text(printed), len(sources) + 1)}]",
            ))  # fmt: skip
            for name in wrong:
                ours = (f"{one.text} {where}" for one, where in _against(name, here, planned))
                text = figures_text({name: printed.figures[name]})
                disagreements.append(f"{row.name}: {text} is printed ({printed.source}); {' and '.join(ours)}")
        disagreements += _among_sources(row)
    parts = (
        Text(text=_note(table, card)),
        Table(columns=COLUMNS, rows=lines),
        Text(text=" ".join(f"[{number}] {source}." for source, number in sources.items())),
        Text(text="Disagreements: " + ". ".join(disagreements or ["none was found"]) + "."),
    )
    return Section(title=table.paper.title, parts=parts)


def as_text(shown: Section) -> str:
    """For a terminal."""
    from tabulate import tabulate

    found = [shown.title]
    for part in shown.parts:
        if isinstance(part, Text):
            found.append(textwrap.fill(part.text, WIDTH))
        elif isinstance(part, Table):
            cells = [[textwrap.fill(str(cell), CELL) for cell in row] for row in part.rows]
            found.append(tabulate(cells, part.columns, tablefmt="simple", disable_numparse=True))
    return "\n\n".join(found)


@dataclass(frozen=True, kw_only=True)
class _Ours:
    """A figure of ours beside a printed one; `fits` is None where it cannot be held against that."""

    text: str
    fits: bool | None


_Found = tuple[Entry, Block]


def _fits(name: str, *ours: Mapping[str, _Ours]) -> list[bool]:
    return [fits for one in ours if name in one and (fits := one[name].fits) is not None]


def _against(name: str, here: Mapping[str, _Ours], planned: Mapping[str, _Ours]) -> Iterator[tuple[_Ours, str]]:
    for ours, where in ((here, "measured here"), (planned, "by the plan")):
        if name in ours and ours[name].fits is False:
            yield ours[name], where


def _cell(ours: Mapping[str, _Ours]) -> str:
    return "; ".join(one.text for one in ours.values()) or "-"


def _entry(row: ResolvedRow, paper: Paper, records: Sequence[Record]) -> _Found | None:
    """Our measurement of the row on the paper's model; a quick look is not compared with what was printed."""
    of_model = [record for record in records if record.model.preset == paper.model and not record.protocol.quick]
    for block in blocks_of(of_model):
        for entry in block.entries:
            if entry.name == row.name and entry.believable:
                return entry, block
    return None


def _by_plan(
    row: ResolvedRow, printed: PublishedLine, table: PaperTable, card: Hardware
) -> Iterator[tuple[str, _Ours]]:
    if row.stated_flops is not None and (seconds := printed.figures.get("latency_s")) is not None:
        # Of what replaces the loop, which has no plan, no bytes are known: its products take so long at least.
        least = row.stated_flops / card.rate(table.paper.dtype)
        yield (
            "latency_s",
            _Ours(text=f"at least {formatting.seconds(least)} by its work", fits=seconds >= least),
        )
    if row.plan is None or row.other_plan is None or table.full.plan is None or table.full.other_plan is None:
        return
    ours, full = (
        {plan.accounting: work(plan, batch=table.paper.batch, dtype=table.paper.dtype) for plan in plans}
        for plans in ((row.plan, row.other_plan), (table.full.plan, table.full.other_plan))
    )
    if (seconds := printed.figures.get("latency_s")) is not None:
        foreseen = predict(ours["lossless"], card)
        bound = foreseen.bound
        fits = seconds >= foreseen.transformer if bound else abs(foreseen.transformer / seconds - 1) <= SPEED_FIT
        yield "latency_s", _Ours(text=f"{'at least ' * bound}{formatting.seconds(foreseen.transformer)}", fits=fits)
    for beside in by_plan(printed.figures, Works(ours=ours, full=full)):
        yield beside.figure, _Ours(text=beside.ours, fits=beside.fits)


def _measured(
    row: ResolvedRow, printed: PublishedLine, found: _Found | None, paper: Paper, card: Hardware
) -> Iterator[tuple[str, _Ours]]:
    """Times and memory are judged on the paper's card alone, scores under the paper's name and from enough images."""
    if found is None:
        return
    entry, block = found
    protocol, device = entry.first.protocol, str(block.conditions["device"])
    where = entry.first.environment
    known = sheet_of(device, cores=where.cores, memory=where.device_memory_bytes)
    like_theirs = known is not None and known.name == card.name and protocol.batch == paper.batch
    for name, score_name in SCORES.items():
        score, ours = named_score(entry.first, score_name), entry.score(score_name)
        if name in printed.figures and score is not None and ours is not None:
            alike = why_not(printed, row.published, protocol) is None
            judged = alike and score_label(score) == score_name and score.n >= PUBLISHED_IMAGES
            fits = abs(ours.value / printed.figures[name] - 1) <= FIT
            yield (
                name,
                _Ours(text=f"{score_label(score)} {formatting.with_interval(ours)}", fits=fits if judged else None),
            )
    ratio, seconds = entry.speedups.get("lossless"), entry.seconds(entry.timed, "throughput")
    peak = entry.memory("peak_bytes")
    measured = {
        "speedup": (ratio.value, formatting.times(ratio)) if ratio else None,
        "latency_s": (seconds.value, formatting.seconds(seconds.value)) if seconds else None,
        "memory_mb": (peak / MIB, formatting.size(peak)) if peak else None,
    }
    for name, pair in measured.items():
        if name in printed.figures and pair is not None:
            fits = abs(pair[0] / printed.figures[name] - 1) <= SPEED_FIT
            text = f"{pair[1]} on {device} at batch {protocol.batch}"
            yield name, _Ours(text=text, fits=fits if like_theirs else None)


def _among_sources(row: ResolvedRow) -> Iterator[str]:
    """Where one figure was printed twice, and not alike."""
    for name in dict.fromkeys(name for line in row.published for name in line.figures):
        lines = [line for line in row.published if name in line.figures]
        values = [line.figures[name] for line in lines]
        if max(values) - min(values) > SOURCES_FIT * max(values):
            texts = (f"{figures_text({name: line.figures[name]})} ({line.source})" for line in lines)
            yield f"{row.name}: printed are {' and '.join(texts)}"


def _note(table: PaperTable, card: Hardware) -> str:
    paper = table.paper
    bound = ", here a bound, which a printed time may not be below" if card.bounds(paper.dtype) else ""
    note = (
        f"Printed for {paper.model}; times for {card.name}, batch {paper.batch}, {paper.dtype}, without the decoder. Primary is "
        "the authors' own, secondary a note of others. The plan foresees work, cache and a roofline's time"
        f"{bound}; no plan foresees a score. A printed speedup is held against the work that is saved."
    )
    if table.left_out:
        note += f" Rows of plugins that are not installed: {', '.join(table.left_out)}."
    return note
