"""Records sorted for reading: repeats of a row become one entry, entries under like conditions become one block."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from varbench.base import stats
from varbench.base.stats import Interval, Judgement, Ratio
from varbench.record import Record, Score, Status, Totals, Verdict
from varbench.record.option_forms import in_words
from varbench.show import formatting, speedups
from varbench.show.conditions import with_conditions
from varbench.show.score_differences import interval_of, named_score, same_noise_difference
from varbench.show.speedups import ALIKE, Speed, beside, kind_of_work, processes, speedup, timed_by, timing_column

# The start of the SHA-256 of the two files in which the published Inception weights circulate.
PUBLISHED_INCEPTION = ("6726825d", "f58cb9b6")

PUBLISHED_IMAGES = 50_000
"""That printed distances are of. From fewer it comes out higher."""


ONE_TRAINING = "Trained rows stand for one seed of training: marks are about these weights, and no recipe is called better than another."


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One row under one set of conditions, with its repeats: the same row with other seeds or in other runs."""

    records: tuple[Record, ...]
    alike: tuple[Record, ...] = ()
    """Complete records of all rows whose speed and memory are the same by construction, its own among them."""
    speeds: dict[str, Speed] = field(default_factory=dict)
    """By denominator, in the column `timed`, throughput batch."""
    marks: dict[str, Judgement] = field(default_factory=dict)
    """Whether these are differences, with all others of the page in mind."""

    @functools.cached_property
    def first(self) -> Record:
        """The repeat that stands for all where repeats agree by construction: plan, provenance, command."""
        return self.complete[0] if self.complete else self.records[0]

    @functools.cached_property
    def name(self) -> str:
        return self.first.row.row

    @functools.cached_property
    def family(self) -> str:
        """What is drawn in one colour: the plugins and the recipe, whatever the point."""
        plugins = "+".join(plugin.name for plugin in self.first.row.plugins)
        recipe = recipe_of(self.first)
        return f"{plugins}@{recipe}" if recipe else plugins

    @functools.cached_property
    def complete(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.status is Status.COMPLETE)

    @functools.cached_property
    def in_table(self) -> bool:
        """Whether any repeat was asked for otherwise than by a study."""
        return any(not record.row.study for record in self.records)

    @functools.cached_property
    def of_study(self) -> Record | None:
        """The repeat that a study asked for, alone or too."""
        return next((record for record in self.records if record.row.study or record.row.also_in), None)

    @functools.cached_property
    def is_full(self) -> bool:
        return self.first.row.denominator is not None

    @functools.cached_property
    def believable(self) -> bool:
        """Every repeat is complete and valid: only such entries answer anything."""
        return all(
            record.status is Status.COMPLETE and record.validity.verdict is Verdict.VALID for record in self.records
        )

    @functools.cached_property
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

    @functools.cached_property
    def headline(self) -> Score | None:
        quality = self.first.quality
        return quality.scores[0] if quality and quality.scores else None

    def score(self, name: str) -> Interval | None:
        """A score over the repeats; a score without an interval has one of no width. Repeats under one seed have images of one
        noise, so together they say no more than one of them."""
        found: dict[int, list[Interval]] = {}
        for record in self.complete:
            if (score := named_score(record, name)) is not None:
                found.setdefault(record.protocol.seed, []).append(interval_of(score))
        return stats.combine([stats.middle(of_seed) for of_seed in found.values()]) if found else None

    @functools.cached_property
    def training(self) -> str | None:
        """What names the weights that a recipe made; null where they were there before."""
        return self.first.training.key if self.first.training else None

    @functools.cached_property
    def seeds(self) -> frozenset[int]:
        return frozenset(record.protocol.seed for record in self.complete)

    @functools.cached_property
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

    @functools.cached_property
    def timed(self) -> str:
        return timed_by(self.complete)

    @functools.cached_property
    def speedups(self) -> dict[str, Interval]:
        return {accounting: speed.ratio for accounting, speed in self.speeds.items()}

    def memory(self, name: str) -> int | None:
        """A memory figure, `peak_bytes` or `state_peak_bytes` or `state_end_bytes`: what most rows of its plan show."""
        found = _bytes(self.alike or self.complete, name)
        return statistics.mode(found) if found else None

    def own_memory(self, name: str) -> int | None:
        """The same of its own repeats: the largest."""
        return max(_bytes(self.complete, name), default=None)

    @functools.cached_property
    def work(self) -> Totals | None:
        """What really ran; of a row that did not run, what was planned."""
        return self.first.trace or (self.first.plan.totals if self.first.plan else None)

    def bounds(self, whole: float) -> str | None:
        """Where work depends on content, the least and the most as shares of this many FLOPs."""
        plan = self.first.plan
        if plan is None or plan.least is None or plan.least.flops is None or plan.totals.flops is None:
            return None
        return f"{100 * plan.least.flops / whole:.0f}-{plan.totals.flops / whole:.0%}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Entries that may be compared: one model, one protocol, one machine."""

    conditions: dict[str, Any]
    entries: tuple[Entry, ...]  # the main table
    studies: dict[str, tuple[Entry, ...]]  # rows of a panel of their own, some of which are in the table too

    @functools.cached_property
    def everything(self) -> tuple[Entry, ...]:
        """The main table's entries, then those of the studies."""
        return (*self.entries, *(e for study in self.studies.values() for e in study if not e.in_table))

    @functools.cached_property
    def full(self) -> dict[str, Entry]:
        """The full model by accounting."""
        return _denominators(self.entries)

    @functools.cached_property
    def itself(self) -> Interval | None:
        """Rows of the full model's plan beside the full model: what a ratio of equal plans comes to here."""
        full = self.full.get("lossless")
        return None if full is None else beside(full.alike, full.timed, "throughput")

    @functools.cached_property
    def title(self) -> str:
        random = ["random weights"] if self.conditions["weights"] == "random" else []
        told = in_words(self.everything[0].first.protocol)
        return ", ".join([self.conditions["preset"], *random, *told, f"on {self.conditions['device']}"])

    @functools.cached_property
    def quality_notes(self) -> tuple[str, ...]:
        """What the headline score's figures, intervals and marks mean."""
        score = self.headline
        if score is None:
            return ()
        told = f"{score_label(score)}: {score.better} is better, from {score.n:,} images"
        if score.bias is not None:
            told += f", so few that it is about {formatting.number(score.bias)} too high; floors are so too"
        told += ". Its interval is that of other images from the same weights; the reference is taken as fixed."
        # No second seed says how much hangs on the seed.
        trained = any(entry.training is not None and len(entry.seeds) == 1 for entry in self.entries)
        return (told, ONE_TRAINING) if trained else (told,)

    @functools.cached_property
    def headline(self) -> Score | None:
        """The score of table and pictures: that of the full model, else the first that any row has."""
        ordered = sorted(self.entries, key=lambda entry: not entry.is_full)
        return next((entry.headline for entry in ordered if entry.headline), None)


def recipe_of(record: Record) -> str | None:
    """How its weights came to be, also where that was to train nothing."""
    return record.row.recipe or record.row.named_recipe


def ended(record: Record) -> str:
    """How a row came out, in a word or two: what kept it from an end, else whether it is valid."""
    if record.status is not Status.COMPLETE:
        return record.status.replace("_", " ")
    return record.validity.verdict.value


def score_label(score: Score) -> str:
    """What a score may be called: `FID` needs the published weights, and 50,000 images to go without their number."""
    name = score.name
    if name.upper().startswith("FID") and not (score.weights_sha256 or "").startswith(PUBLISHED_INCEPTION):
        name = f"Fréchet distance ({score.features or 'features not named'})"
    elif name.upper() == "FID" and score.n < PUBLISHED_IMAGES:
        name = f"FID-{score.n}"
    return name


def blocks_of(records: Sequence[Record]) -> list[Block]:
    """All records in blocks; the block with most believable rows first, then by title."""
    by_conditions: dict[tuple[Any, ...], dict[tuple[str, str], list[Record]]] = {}
    for record, conditions in with_conditions(records):
        row = (record.row.row, record.protocol.accounting)
        by_conditions.setdefault(conditions, {}).setdefault(row, []).append(record)
    found = {
        conditions: _with_speeds([Entry(records=tuple(repeats)) for repeats in rows.values()])
        for conditions, rows in by_conditions.items()
    }
    marks = _marks([entry for entries in found.values() for entry in entries])
    blocks = []
    for conditions, bare in found.items():
        entries = [dataclasses.replace(entry, marks=marks.get(id(entry), {})) for entry in bare]
        studies: dict[str, list[Entry]] = {}
        for entry in entries:
            if (asked := entry.of_study) is not None and (study := asked.row.study or asked.row.also_in):
                studies.setdefault(study, []).append(entry)
        blocks.append(
            Block(
                conditions=dict(conditions),
                entries=tuple(sorted((e for e in entries if e.in_table), key=_table_order)),
                studies={name: tuple(sorted(found, key=_study_order)) for name, found in studies.items()},
            )
        )
    return sorted(blocks, key=lambda block: (-sum(e.believable for e in block.entries), block.title))


def judge_quality(entry: Entry, other: Entry) -> Judgement | None:
    """Is `entry` better than `other` by the headline score? `same` means that no difference was shown.

    Beside the full model that is a word on these weights. No recipe is called better than another after one training.
    """
    headline = other.headline
    gap = score_difference(entry, other, headline.name) if headline is not None else None
    if headline is None or gap is None:
        return None
    if not other.is_full and need_seeds(entry, other):
        return "same"
    return stats.judge_difference(gap, better=headline.better)


def score_difference(entry: Entry, other: Entry, name: str) -> Interval | None:
    """`entry` less `other` in a score: seed by seed where they share seeds, and then image by image."""
    found = [
        same_noise_difference(theirs, mine)
        for seed in sorted(entry.seeds & other.seeds)
        if (mine := _of_seed(entry, seed, name)) is not None and (theirs := _of_seed(other, seed, name)) is not None
    ]
    if found:
        return stats.combine(found)
    ours, others = entry.score(name), other.score(name)
    return None if ours is None or others is None else stats.difference(others, ours)


def need_seeds(entry: Entry, other: Entry) -> bool:
    """Whether two rows run on weights of different trainings, and further seeds would have to say which recipe is better."""
    return entry.training != other.training and len(entry.seeds & other.seeds) < 2


def _of_seed(entry: Entry, seed: int, name: str) -> Score | None:
    return next((named_score(record, name) for record in entry.complete if record.protocol.seed == seed), None)


def judge_speed(entry: Entry, accounting: str) -> Judgement | None:
    """Is `entry` faster or slower than the full model? `same` means that no difference was shown."""
    return entry.marks.get(accounting)


def _denominators(entries: Sequence[Entry]) -> dict[str, Entry]:
    return {entry.first.row.denominator: entry for entry in entries if entry.first.row.denominator}


def _with_speeds(entries: list[Entry]) -> list[Entry]:
    """The entries of a block with their speedups; rows that are not believed are in nobody else's figure."""
    pools: dict[tuple[object, ...], list[Record]] = {}
    for entry in entries:
        if entry.believable and (kind := kind_of_work(entry.first)) is not None:
            pools.setdefault(kind, []).extend(entry.complete)
    full = _denominators(entries)

    def measured(records: Sequence[Record], accounting: str, column: str) -> tuple[Ratio | None, int, int]:
        ratio = speedup(records, full[accounting].complete, accounting=accounting, column=column, regime="throughput")
        places = (records, column, "throughput")
        return ratio, processes(*places), speedups.left_out(*places)

    @functools.cache  # every row of a plan asks for the same
    def of_plan(kind: tuple[object, ...], *asked: str) -> tuple[Ratio | None, int, int]:
        return measured(pools[kind], *asked)

    found = []
    for entry in entries:
        kind = kind_of_work(entry.first) if entry.believable else None
        alike = entry.complete if kind is None else tuple(pools[kind])
        speeds = {}
        for accounting, denominator in full.items():
            own, own_count, _ = of_own = measured(entry.complete, accounting, entry.timed)
            ratio, count, left_out = of_own if kind is None else of_plan(kind, accounting, entry.timed)
            if ratio is not None and own is not None:
                is_itself = entry is denominator
                speeds[accounting] = Speed(
                    ratio=ALIKE if is_itself else ratio,
                    own=ALIKE if is_itself else own,
                    processes=count,
                    own_processes=own_count,
                    left_out=left_out,
                )
        found.append(dataclasses.replace(entry, alike=alike, speeds=speeds))
    return found


def _marks(entries: Sequence[Entry]) -> dict[int, dict[str, Judgement]]:
    """Of all entries of a page, by Holm: each plan is one question for each denominator, however many rows run it."""
    questions: dict[tuple[object, ...], list[tuple[Entry, str]]] = {}
    for entry in entries:
        if entry.believable and not entry.is_full:
            for accounting in entry.speeds:
                which = tuple(map(id, entry.alike))
                questions.setdefault((which, accounting), []).append((entry, accounting))
    ratios = [some[0][0].speeds[some[0][1]].ratio for some in questions.values()]
    marks: dict[int, dict[str, Judgement]] = {}
    for ratio, shown, some in zip(ratios, stats.holm([one.p for one in ratios]), questions.values(), strict=True):
        judged: Judgement = "same" if not shown else "better" if ratio.value > 1 else "worse"
        for entry, accounting in some:
            marks.setdefault(id(entry), {})[accounting] = judged
    return marks


def _bytes(records: Sequence[Record], name: str) -> list[int]:
    found = []
    for record in records:
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
    return found


def _study_order(entry: Entry) -> int:
    asked = entry.of_study
    return asked.study.place if asked is not None and asked.study is not None else 0


def _table_order(entry: Entry) -> tuple[bool, bool, float, str]:
    """The full model, then the believable rows from the best quality down, then the rest by name."""
    quality, headline = entry.quality, entry.headline
    sign = -1 if headline and headline.better == "higher" else 1
    rank = float("inf") if quality is None or not entry.believable else sign * quality.value
    return (not entry.is_full, not entry.believable, rank, entry.name)
