"""What is doubtful about a block's published figures, and the command that would mend it: how sure its speedups are is one line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from varbench.base import stats
from varbench.record import Notice
from varbench.record.option_forms import as_arguments
from varbench.record.options import FEWEST_PROCESSES
from varbench.show import formatting
from varbench.show.entries import Block, Entry
from varbench.show.speedups import Speed

MOST_ROUNDS = 50
"""More are no advice: a quieter machine is."""

MANY = 0.25
"""Share of the calls that were made again beyond which the machine was busy."""

WHO_IS_BUSY = "ps -eo pcpu,pid,args --sort=-pcpu"

_NAMED = 4  # rows in a line


def advice(block: Block) -> list[Notice]:
    """A quick look is not to be made better but to be followed by a run."""
    if block.conditions["quick"]:
        return []
    finders = (_imprecise, _apart, _memory, _unforeseen)
    return [notice for find in finders if (notice := find(block)) is not None]


def across_blocks(blocks: Sequence[Block]) -> list[Notice]:
    """A distance from fewer images comes out higher: one of 10,000 beside one of 50,000 says nothing of the methods."""
    counts: dict[tuple[str, str], dict[int, Entry]] = {}
    for block in blocks:
        for entry in block.entries:
            if (score := entry.headline) is not None and not block.conditions["quick"]:
                counts.setdefault((str(block.conditions["preset"]), score.name), {}).setdefault(score.n, entry)
    found = []
    for (model, name), by_count in counts.items():
        if len(by_count) > 1:
            most = max(by_count)
            fewer = by_count[min(by_count)]
            text = f"{name} of {model} from {' and '.join(f'{count:,}' for count in sorted(by_count))} images: one of fewer is higher"
            options = replace(fewer.first.protocol, images=most)
            again = shlex.join(as_arguments(options, row=fewer.name))
            found.append(Notice(text=f"{text}, and they are not compared", next_command=again))
    return found


def _timed(block: Block) -> Iterator[tuple[Entry, Speed]]:
    for entry in block.entries:
        if entry.believable and not entry.is_full and (speed := entry.speeds.get("lossless")) is not None:
            yield entry, speed


def _imprecise(block: Block) -> Notice | None:
    """All that makes published speedups less sure than was asked for, in one line with the command that mends it."""
    timed = list(_timed(block))
    wide = sorted(
        ((entry, speed) for entry, speed in timed if _is_wide(entry, speed)), key=lambda found: -found[1].half_width
    )
    busy = _busy(block)
    if not wide:
        return Notice(text=busy, next_command=WHO_IS_BUSY) if busy else None
    precision = min(entry.first.protocol.precision for entry, _ in wide)
    told = _some(
        f"{entry.name} ± {speed.half_width:.1%}{' of one process' * (speed.processes == 1)}" for entry, speed in wide
    )
    parts = [f"{len(wide)} of {len(timed)} speedups are not known to ± {precision:.1%}, the widest first: {told}"]
    held_up = sum(speed.held_up for _, speed in wide)
    parts += [f"of calls that were held up: {held_up} of them, which a quiet machine mends"] if held_up else []
    parts += [busy] if busy else []
    needed = {entry: rounds for entry, speed in wide if (rounds := rounds_for(speed, precision)) is not None}
    if len(needed) < len(wide):
        which = f"for {len(wide) - len(needed)} of them " if needed else ""
        parts.append(f"{which}{MOST_ROUNDS} rounds would not do, a quieter machine might")
    again = _again(list(needed), rounds=max(needed.values())) if needed else WHO_IS_BUSY
    return Notice(text="; ".join(parts), next_command=again)


def _is_wide(entry: Entry, speed: Speed) -> bool:
    """One process has an interval of its own pairs, which says nothing of the next process."""
    return speed.processes == 1 or speed.half_width > entry.first.protocol.precision


def _busy(block: Block) -> str | None:
    """Where something was timed, by the load when the run began, since its own calls are load too, and by what was taken again."""
    records = [record for entry in block.entries for record in entry.complete if record.timing]
    loads = [
        (record.environment.load, record.environment.cores) for record in records if record.environment.load is not None
    ]
    load, cores = max(loads, default=(0.0, 1))
    timings = [record.timing for record in records if record.timing and record.timing.discarded is not None]
    again = sum(timing.discarded or 0 for timing in timings)
    kept = sum(
        2 * len(samples)
        for timing in timings
        for column in timing.columns
        if column.column == "end_to_end"
        for samples in column.rounds
    )
    if load <= cores and again <= MANY * (again + kept):
        return None
    share = again / (again + kept) if again else 0.0
    return (
        f"the machine was busy with something else: load {load:.1f} on {cores} cores when the run began, and {share:.0%} "
        "of the calls were held up and made again"
    )


def rounds_for(speed: Speed, precision: float) -> int | None:
    """The fewest rounds in which the interval would be as narrow as that, were calls held up as they were; None beyond the most.
    What waits add no number of rounds makes smaller. What differs between processes is not known of one."""
    each = max(1, round(speed.processes / speed.own_processes))  # processes a round: rows of one plan are pooled
    spread = speed.ratio.error * math.sqrt(speed.processes)
    left = math.log1p(precision) - (speed.ratio.down + speed.ratio.up) / 2
    fewest = FEWEST_PROCESSES if speed.processes == 1 else speed.own_processes
    for number in range(fewest, MOST_ROUNDS + 1):
        count = each * number
        if stats.student(count - 1) * spread / math.sqrt(count) <= left:
            return number
    return None


def _apart(block: Block) -> Notice | None:
    apart = [(entry, speed) for entry, speed in _timed(block) if speed.apart]
    if not apart:
        return None
    told = _some(
        f"{entry.name} {formatting.times(speed.own)} against {formatting.times(speed.ratio)}" for entry, speed in apart
    )
    text = f"rows whose own speedup leaves that of all rows of their plan: {told}"
    return Notice(text=text, next_command=_again([entry for entry, _ in apart], rounds=FEWEST_PROCESSES))


def _memory(block: Block) -> Notice | None:
    figures = [(e, e.own_memory("peak_bytes"), e.memory("peak_bytes")) for e in block.entries if e.believable]
    apart = [(entry, own, usual) for entry, own, usual in figures if own is not None and own != usual]
    if not apart:
        return None
    told = _some(f"{entry.name} {own:,} B against {usual:,} B" for entry, own, usual in apart)
    text = f"rows whose own peak memory is not that of their plan: {told}"
    again = _again([entry for entry, _, _ in apart], rounds=apart[0][0].first.protocol.rounds)
    return Notice(text=text, next_command=f"{again} --fresh")


def _unforeseen(block: Block) -> Notice | None:
    planned = [entry.first for entry in block.entries if entry.first.plan is not None]
    if not planned or any(record.plan.hardware for record in planned if record.plan):
        return None
    device = planned[0].protocol.device
    return Notice(
        text=f"no time is predicted: {planned[0].why('plan.hardware')}",
        next_command=f"varbench env --calibrate --device {device}",
    )


def _again(entries: Sequence[Entry], *, rounds: int) -> str:
    options = entries[0].first.protocol
    names = ",".join(entry.name for entry in entries)
    return shlex.join(as_arguments(replace(options, rounds=rounds), row=names))


def _some(texts: Iterable[str]) -> str:
    return formatting.some(texts, _NAMED)
