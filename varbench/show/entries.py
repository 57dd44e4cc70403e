"""Records sorted for reading: repeats of a row become one entry, entries under like conditions become one block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from varbench.base import stats
from varbench.base.stats import Interval, Judgement
from varbench.record import Record, Score, Status, TimingColumn, Totals, Verdict
from varbench.record.option_forms import compared, in_words

# The start of the SHA-256 of the two files in which the published Inception weights circulate.
PUBLISHED_INCEPTION = ("6726825d", "f58cb9b6")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One row under one set of conditions, with its repeats: the same row with other seeds or in other runs."""

    records: tuple[Record, ...]
    speedups: dict[str, Interval] = field(
        default_factory=dict
    )  # by denominator, in the column `timed`, throughput batch

    @cached_property
    def first(self) -> Record:
        """The repeat that stands for all where repeats agree by construction: plan, provenance, command."""
        return self.complete[0] if self.complete else self.records[0]

    @cached_property
    def name(self) -> str:
        return self.first.row.row

    @cached_property
    def family(self) -> str:
        """What is drawn in one colour: the plugins and the recipe, whatever the point."""
        plugins = "+".join(plugin.name for plugin in self.first.row.plugins)
        recipe = recipe_of(self.first)
        return f"{plugins}@{recipe}" if recipe else plugins

    @cached_property
    def complete(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.status is Status.COMPLETE)

    @cached_property
    def is_full(self) -> bool:
        return self.first.row.denominator is not None

    @cached_property
    def believable(self) -> bool:
        """Every repeat is complete and valid: only such entries answer anything."""
        return all(
            record.status is Status.COMPLETE and record.validity.verdict is Verdict.VALID for record in self.records
        )

    @cached_property
    def trouble(self) -> str | None:
        """Why the entry is not believable, in one line; null when it is."""
        if self.believable:
            return None
        texts = []
        for record in self.records:
            if record.status is not Status.COMPLETE:
                texts.append(f"{record.status.replace('_', ' ')}: {record.reason or 'no reason recorded'}")
            elif record.validity.verdict is not Verdict.VALID:
                texts.append(f"{record.validity.verdict}: {'; '.join(record.validity.reasons) or 'no reason recorded'}")
        unique = list(dict.fromkeys(texts))
        share = f"{len(texts)} of {len(self.records)} repeats, " if len(self.records) > 1 else ""
        return share + " | ".join(unique)

    @cached_property
    def headline(self) -> Score | None:
        quality = self.first.quality
        return quality.scores[0] if quality and quality.scores else None

    def score(self, name: str) -> Interval | None:
        """A score over the repeats; a score without an interval has one of no width."""
        found = []
        for record in self.complete:
            for score in record.quality.scores if record.quality else ():
                if score.name == name and score.value is not None:
                    low = score.value if score.low is None else score.low
                    high = score.value if score.high is None else score.high
                    found.append(Interval(value=score.value, low=low, high=high))
        return stats.combine(found) if found else None

    @cached_property
    def quality(self) -> Interval | None:
        """The headline score; all entries of a block are asked for the block's by `score`."""
        return self.score(self.headline.name) if self.headline else None

    def seconds(self, column: str, regime: str) -> Interval | None:
        found = [
            Interval(value=timing.median, low=timing.low, high=timing.high)
            for timing in (timing_column(record, column, regime) for record in self.complete)
            if timing is not None
        ]
        return stats.combine(found) if found else None

    @cached_property
    def timed(self) -> str:
        """The column that its speed is told by: a row that replaces the loop has no transformer to time alone."""
        own = any(timing_column(record, "transformer", "throughput") for record in self.complete)
        return "transformer" if own or not any(record.timing for record in self.complete) else "with_decoder"

    def memory(self, name: str) -> int | None:
        """A memory figure, `peak_bytes` or `state_peak_bytes` or `state_end_bytes`; the largest of the repeats."""
        found = []
        for record in self.complete:
            if record.memory is None:
                continue
            state = record.memory.state_peak_bytes
            if name == "peak_bytes":
                value = record.memory.peak_bytes
            elif not state:
                value = None
            else:
                value = max(state) if name == "state_peak_bytes" else state[-1]
            if value is not None:
                found.append(value)
        return max(found) if found else None

    @cached_property
    def work(self) -> Totals | None:
        """What really ran; of a row that did not run, what was planned."""
        return self.first.trace or (self.first.plan.totals if self.first.plan else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Entries that may be compared: one model, one protocol, one machine."""

    conditions: dict[str, Any]
    entries: tuple[Entry, ...]  # the main table
    studies: dict[str, tuple[Entry, ...]]  # rows made for a panel of their own

    @cached_property
    def full(self) -> dict[str, Entry]:
        """The full model by accounting."""
        return _denominators(self.entries)

    @cached_property
    def itself(self) -> Interval | None:
        """The full model's row beside the full model: what a ratio of equal plans comes to here."""
        full = self.full.get("lossless")
        ratios = [] if full is None else [found for record in full.complete if (found := _beside(record, full.timed))]
        return stats.combine(ratios) if ratios else None

    @cached_property
    def title(self) -> str:
        entries = [*self.entries, *(entry for study in self.studies.values() for entry in study)]
        random = ["random weights"] if self.conditions["weights"] == "random" else []
        told = in_words(entries[0].first.protocol)
        return ", ".join([self.conditions["preset"], *random, *told, f"on {self.conditions['device']}"])

    @cached_property
    def headline(self) -> Score | None:
        """The score of table and pictures: that of the full model, else the first that any row has."""
        ordered = sorted(self.entries, key=lambda entry: not entry.is_full)
        return next((entry.headline for entry in ordered if entry.headline), None)


def timing_column(record: Record, column: str, regime: str) -> TimingColumn | None:
    columns = record.timing.columns if record.timing else ()
    return next((found for found in columns if (found.column, found.regime) == (column, regime)), None)


def recipe_of(record: Record) -> str | None:
    """How its weights came to be, also where that was to train nothing."""
    return record.row.recipe or record.row.named_recipe


def score_label(score: Score) -> str:
    """What a score may be called: `FID` needs the published weights, and 10,000 images to go without their number."""
    name = score.name
    if name.upper().startswith("FID") and not (score.weights_sha256 or "").startswith(PUBLISHED_INCEPTION):
        name = f"Fréchet distance ({score.features or 'features not named'})"
    elif name.upper() == "FID" and score.n < 10_000:
        name = f"FID-{score.n}"
    return name


def conditions_of(record: Record) -> dict[str, Any]:
    """What two rows must share to stand in one table. Accounting is not among them: both denominators are shown."""
    return {
        "preset": record.model.preset,
        "weights": "random" if record.model.weights == "random" else "trained",
        "device": record.environment.device,
        "machine": record.environment.machine,
        **compared(record.protocol),
    }


def blocks_of(records: Sequence[Record]) -> list[Block]:
    """All records in blocks; the block with most believable rows first, then by title."""
    by_conditions: dict[tuple[Any, ...], dict[tuple[str, str | None, str], list[Record]]] = {}
    for record in records:
        conditions = tuple(conditions_of(record).items())
        row = (record.row.row, record.row.study, record.protocol.accounting)
        by_conditions.setdefault(conditions, {}).setdefault(row, []).append(record)
    blocks = []
    for conditions, rows in by_conditions.items():
        entries = [Entry(records=tuple(repeats)) for repeats in rows.values()]
        full = _denominators(entries)
        entries = [dataclasses.replace(entry, speedups=_speedups(entry, full)) for entry in entries]
        studies: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.first.row.study:
                studies.setdefault(entry.first.row.study, []).append(entry)
        blocks.append(
            Block(
                conditions=dict(conditions),
                entries=tuple(sorted((e for e in entries if not e.first.row.study), key=_table_order)),
                studies={name: tuple(sorted(found, key=_study_order)) for name, found in studies.items()},
            )
        )
    return sorted(blocks, key=lambda block: (-sum(e.believable for e in block.entries), block.title))


def judge_quality(entry: Entry, other: Entry, *, minimum: float = 0.0) -> Judgement | None:
    """Is `entry` better than `other` by the headline score? `same` means that no difference was shown."""
    headline, mine, theirs = other.headline, entry.quality, other.quality
    if headline is None or mine is None or theirs is None:
        return None
    return stats.judge_difference(stats.difference(theirs, mine), better=headline.better, minimum=minimum)


def judge_speed(entry: Entry, accounting: str) -> Judgement | None:
    speedup = entry.speedups.get(accounting)
    return None if speedup is None else stats.judge_ratio(speedup)


def _denominators(entries: Sequence[Entry]) -> dict[str, Entry]:
    return {entry.first.row.denominator: entry for entry in entries if entry.first.row.denominator}


def _speedups(entry: Entry, full: dict[str, Entry]) -> dict[str, Interval]:
    """Against each denominator. Where the row's calls have the full model's for neighbours, by these pairs: what drifts in
    a process falls on both. Against the other denominator, by how that one compares with the full model in its own."""
    found = {}
    for accounting, denominator in full.items():
        ratios = [
            ratio for record in entry.complete if (ratio := _speedup(record, entry.timed, accounting, denominator))
        ]
        if entry is denominator:
            ratios = [Interval(value=1.0, low=1.0, high=1.0)] if ratios else []
        if ratios:
            found[accounting] = stats.combine(ratios)
    return found


def _speedup(record: Record, column: str, accounting: str, denominator: Entry) -> Interval | None:
    same_run = [other for other in denominator.complete if other.run == record.run]
    other = next(iter(same_run or denominator.complete), None)
    beside = _beside(record, column)
    if beside is not None:
        if accounting == "lossless":
            return beside
        theirs = _beside(other, column) if other and same_run else None
        if theirs is not None:
            return stats.quotient(beside, theirs)
    mine = timing_column(record, column, "throughput")
    their = timing_column(other, column, "throughput") if other else None
    return stats.ratio(their.rounds, mine.rounds, paired=bool(same_run)) if mine and their else None


def _beside(record: Record, column: str) -> Interval | None:
    """How many times as fast as the full model in the neighbouring calls."""
    mine = timing_column(record, column, "throughput")
    return stats.paired_ratio(mine.beside, mine.rounds) if mine and mine.beside else None


def _study_order(entry: Entry) -> int:
    return entry.first.study.place if entry.first.study is not None else 0


def _table_order(entry: Entry) -> tuple[bool, bool, float, str]:
    """The full model, then the believable rows from the best quality down, then the rest by name."""
    quality, headline = entry.quality, entry.headline
    sign = -1 if headline and headline.better == "higher" else 1
    rank = float("inf") if quality is None or not entry.believable else sign * quality.value
    return (not entry.is_full, not entry.believable, rank, entry.name)
