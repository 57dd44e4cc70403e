"""What of the paper's claims holds on a report's records: each claim beside what was measured, and a verdict from intervals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from varbench.base import stats
from varbench.base.stats import Interval
from varbench.record import Record
from varbench.record.sections import Section, Table, Text
from varbench.show import formatting
from varbench.show.entries import Block, Entry, blocks_of, score_label

HOLDS, DOES_NOT, NOT_SHOWN = "holds", "does not hold", "no difference shown"
OURS, HALF = "variant", "fixed_ratio@p05"
RARELY, ALWAYS = "fixed_ratio@p01", "fixed_ratio@p10"
STUDY = "scale_depth_asymmetry"


def sections(records: Sequence[Record]) -> list[Section]:
    """A panel for every block of like conditions that has anything to say of a claim."""
    found = []
    for block in blocks_of(records):
        rows = list(_claims(block))
        if rows:
            found.append(_section(block, rows))
    return found


def _section(block: Block, rows: list[tuple[str, str, str]]) -> Section:
    assert block.headline is not None
    seeds = max(len(entry.complete) for entry in block.entries)
    note = (
        f"{block.title}. Differences are in {score_label(block.headline)}, of the same seed, data order and noise on both sides; "
        f"their 95 % intervals are over {seeds} seeds. A claim holds, or does not, only where the whole interval is on one side."
        if seeds > 1
        else f"{block.title}. Differences are in {score_label(block.headline)}, from one seed: another may turn them around."
    )
    return Section(
        title="Which of VARiant's claims hold here",
        parts=[Text(text=note), Table(columns=("claim", "measured", "here"), rows=rows)],
    )


def _claims(block: Block) -> Iterator[tuple[str, str, str]]:
    if block.headline is None:
        return
    by_name = {entry.name: entry for entry in block.entries if entry.believable}
    depths = [
        name.partition("@")[2]
        for name in by_name
        if name.startswith(f"{OURS}@d") and name.count("/") == 0 and ":" not in name and "+" not in name
    ]

    def rows(claim: str, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
        for better, worse in pairs:
            if better in by_name and worse in by_name:
                yield (claim, *_beside(by_name[better], by_name[worse], block))

    yield from rows(
        "progressive training gives better subnets than p = 0.5", [(f"{OURS}@{d}", f"{HALF}/{d}") for d in depths]
    )
    yield from rows("… and a better full model than p = 0.5", [(f"{OURS}@full", f"{HALF}/full")])
    yield from rows("p = 0.1 spares the full model more than p = 1", [(f"{RARELY}/full", f"{ALWAYS}/full")])
    yield from rows(
        "… and p = 1 gives better subnets than p = 0.1", [(f"{ALWAYS}/{d}", f"{RARELY}/{d}") for d in depths]
    )
    yield from rows("progressive training spares the full model as p = 0.1 does", [(f"{OURS}@full", f"{RARELY}/full")])
    yield from rows("… and gives subnets as good as p = 1 does", [(f"{OURS}@{d}", f"{ALWAYS}/{d}") for d in depths])
    yield from rows("training is what makes the subnets", [(f"{OURS}@{d}", f"{OURS}@untrained/{d}") for d in depths])
    zones = [entry for entry in block.studies.get(STUDY, ()) if entry.believable]
    for early, late in itertools.pairwise(zones):
        claim = f"half depth costs less on scales {_zone(late)} than on {_zone(early)}"
        yield (claim, *_beside(late, early, block))


def _zone(entry: Entry) -> str:
    return str(next(iter(entry.first.row.params.values()), entry.name))


def _beside(better: Entry, worse: Entry, block: Block) -> tuple[str, str]:
    """What was measured of a pair, and whether the first is better."""
    assert block.headline is not None
    found = [
        stats.difference(theirs, mine)
        for theirs, mine in zip(_by_seed(worse, block), _by_seed(better, block), strict=True)
        if theirs is not None and mine is not None
    ]
    both = [entry.score(block.headline.name) for entry in (better, worse)]
    if not found or both[0] is None or both[1] is None:
        return "-", NOT_SHOWN
    gap = stats.combine(found)
    text = f"{better.name} {formatting.with_interval(both[0])}, {worse.name} {formatting.with_interval(both[1])}; difference {formatting.with_interval(gap)}"
    judged = stats.judge_difference(gap, better=block.headline.better)
    return text, {"better": HOLDS, "worse": DOES_NOT, "same": NOT_SHOWN}[judged]


def _by_seed(entry: Entry, block: Block) -> list[Interval | None]:
    """The headline score of each seed that any row of the block has."""
    assert block.headline is not None
    seeds = sorted({record.protocol.seed for other in block.entries for record in other.complete})
    found: dict[int, Interval] = {}
    for record in entry.complete:
        for score in record.quality.scores if record.quality else ():
            if score.name == block.headline.name and score.value is not None:
                low, high = (score.value if end is None else end for end in (score.low, score.high))
                found.setdefault(record.protocol.seed, Interval(value=score.value, low=low, high=high))
    return [found.get(seed) for seed in seeds]
