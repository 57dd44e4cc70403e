"""The README of a round (gpu_round.py): what ran, and its tables, from records and from what the parts said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from varbench.record import load_records
from varbench.show import formatting
from varbench.show.entries import Block, Entry, blocks_of, ended
from varbench.show.speedups import speedup

MARK = "<!-- made by benchmarks/gpu_round.py -->"
Outcome = dict[str, Any]
"""How a part came out: `status`, `seconds`, what it `said` where it failed, at which `commit`, and a hash of what was `asked`."""
SAID = {
    "engine": "The engine",
    "official": "Beside the official code",
    "quality": "`tiny`, trained here: the quality of its weights on this device, and on the CPU",
}
"""Logs that are tables already."""


def write_readme(out: Path, about: Mapping[str, str], outcomes: Mapping[str, Outcome], again: str) -> None:
    """A README that somebody has written stays, and this one is `round.md` there."""
    path = out / "README.md"
    path = path if not path.exists() or MARK in path.read_text() else out / "round.md"
    path.write_text("\n\n".join(_sections(out, about, outcomes, again)) + "\n")


def _sections(out: Path, about: Mapping[str, str], outcomes: Mapping[str, Outcome], again: str) -> Iterator[str]:
    yield f"# One round on {about['card']}\n\n{MARK}"
    yield _table(list(about.items()), ["", ""])
    yield (
        "[index.html](index.html) is the page, [table.md](table.md) has its tables, [records](records) is what they were made\n"
        "from, [logs](logs) what each part said. Again, or on with what is not done:"
    )
    yield f"```text\n{again}\n```"
    parts = [
        [name, one["status"], f"{one['seconds']:.0f}", one["commit"], _cell(one["said"])]
        for name, one in outcomes.items()
    ]
    yield "## Parts\n\n" + _table(parts, ["part", "came out", "seconds", "commit", ""])
    if "official" not in outcomes:
        yield "Nothing stands beside the official code: `--official` takes a checkout of it."
    if (log := out / "logs" / "tests.txt").exists():
        yield _tests(log.read_text(errors="replace"))
    for name, title in (*SAID.items(), *_further(out / "logs")):
        if (log := out / "logs" / f"{name}.txt").exists():
            yield f"## {title}\n\n```text\n{log.read_text(errors='replace').strip()}\n```"
    if (out / "records").exists():
        yield from map(_measured, blocks_of(load_records([out / "records"]).records))


def _further(logs: Path) -> Iterator[tuple[str, str]]:
    """Of the models after the first."""
    for log in sorted(logs.glob("official-*.txt")):
        yield log.stem, f"{SAID['official']}: {log.stem.partition('-')[2]}"


def _tests(log: str) -> str:
    found: dict[str, list[str]] = {}
    for name, came in re.findall(r"^\S+::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", log, re.MULTILINE):
        found.setdefault(came.lower(), []).append(name)
    counts = ", ".join(f"{len(names)} {came}" for came, names in found.items())
    wrong = [f"- `{name}`" for came in ("failed", "error") for name in found.get(came, ())]
    return "\n".join([f"## Tests\n\n{counts or 'None ran'}; [by name](logs/tests.txt).", *wrong])


def _measured(block: Block) -> str:
    heads = [
        "row", f"speedup, batch {block.conditions['batch']}", "foreseen", "transformer", "speedup, batch 1", "whole call",
        "peak memory", "J an image", "largest batch", "may it be believed",
    ]  # fmt: skip
    return f"## {block.title}\n\n" + _table([_line(entry, block) for entry in block.everything], heads)


def _line(entry: Entry, block: Block) -> list[str]:
    record, full = entry.first, block.full.get("lossless")
    one = foreseen = None
    if full is not None:
        one = speedup(entry.complete, full.complete, accounting="lossless", column=entry.timed, regime="latency")
        whole, own = (it.first.plan.predicted_seconds if it.first.plan else None for it in (full, entry))
        foreseen = f"{whole / own:.2f}x" if whole and own else None
    ratio = entry.speedups.get("lossless")
    batch, single = entry.seconds(entry.timed, "throughput"), entry.seconds("end_to_end", "latency")
    peak, largest = entry.memory("peak_bytes"), record.timing.largest_batch if record.timing else None
    cells = (
        entry.name,
        ratio and formatting.times(ratio),
        foreseen,
        batch and formatting.seconds(batch.value),
        one and formatting.times(one),
        single and formatting.seconds(single.value),
        peak and formatting.size(peak),
        record.energy and formatting.number(record.energy.joules_per_image),
        largest and f"{largest.batch:,} by {largest.how}",
        _cell(entry.trouble or ended(record)),
    )
    return [cell or "" for cell in cells]


def _table(lines: list[Any], heads: list[str]) -> str:
    made: str = tabulate(lines, heads, tablefmt="github", disable_numparse=True)
    return made


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
