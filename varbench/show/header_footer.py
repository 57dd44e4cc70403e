"""What the page says of its records beside the table: the run, the counts at the top, the conditions at the foot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from varbench.record import Notice, Record
from varbench.show import formatting
from varbench.show.advice import across_blocks, advice
from varbench.show.entries import Block


def subtitle(records: Sequence[Record]) -> str:
    found = runs(records)
    return f"{'run' if len(found) == 1 else 'runs'} {formatting.some(found)}" if found else "no records"


def runs(records: Sequence[Record]) -> list[str]:
    return sorted({record.run for record in records})


def headline_facts(blocks: Sequence[Block], records: Sequence[Record]) -> list[tuple[str, str]]:
    entries = [entry for block in blocks for entry in block.entries]
    if not entries:
        return []
    first = blocks[0]
    facts = [("rows", f"{len(entries)}"), ("valid", f"{sum(entry.believable for entry in entries)}")]
    repeats = max(len(entry.records) for entry in first.entries)
    facts += [("repeats a row", f"{repeats}")] if repeats > 1 else []
    facts += [("model", str(first.conditions["preset"])), ("device", str(first.conditions["device"]))]
    if first.itself is not None:
        facts.append(("full model against itself", formatting.times(first.itself)))
    facts += [("measured", max(record.started for record in records)[:10])]
    return facts


def notices(records: Sequence[Record], blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """What records say of themselves, one for every kind, which is the text as far as its first colon: of each the first,
    and how many rows have one. Then what is to be said of the blocks' figures."""
    kinds: dict[tuple[str, bool], list[Notice]] = {}
    for record in records:
        for notice in record.warnings:
            kinds.setdefault((notice.text.partition(":")[0], notice.next_command is None), []).append(notice)
    ordered = sorted(kinds.values(), key=len, reverse=True)
    ordered += [[notice] for block in blocks for notice in advice(block)]
    ordered += [[notice] for notice in across_blocks(blocks)]
    return [{"text": alike[0].text, "next_command": alike[0].next_command, "count": len(alike)} for alike in ordered]


def conditions_facts(block: Block) -> dict[str, Any]:
    """What the rows of a block share, read off its first entry, and where they differ, all values."""
    records = [record for entry in block.entries for record in entry.records]
    records = records or [record for study in block.studies.values() for entry in study for record in entry.records]
    environment, protocol = records[0].environment, records[0].protocol
    versions = {name: sorted({r.environment.versions.get(name, "–") for r in records}) for name in environment.versions}
    facts = {
        "sampling": f"cfg {protocol.cfg:g}, top-k {protocol.top_k}, top-p {protocol.top_p:g}",
        "batch and precision": f"batch {protocol.batch}, {protocol.dtype}, compile {protocol.compile}",
        "attention kernel": ", ".join(sorted({r.protocol.kernel or "not observed" for r in records})),
        "arithmetic": " | ".join(sorted({r.protocol.arithmetic or "not observed" for r in records})),
        "images": f"{protocol.images:,}, {protocol.labels}, bytes by rounding",
        "scores against": " | ".join(sorted({r.quality.against for r in records if r.quality and r.quality.against})),
        "noise": f"seeds {', '.join(str(seed) for seed in sorted({r.protocol.seed for r in records}))}, "
        f"keyed by {protocol.seed_scheme}",
        "rounds": ", ".join(str(number) for number in sorted({r.protocol.rounds for r in records}))
        + (", rows with the same weights share a child" if protocol.shared_child else ", each in fresh processes"),
        "machine": f"{environment.cpu}, {environment.cores} cores"
        + (f", {formatting.size(environment.memory_bytes)}" if environment.memory_bytes else "")
        + f", {environment.system} ({environment.machine})",
        "device": environment.device + (f", driver {environment.driver}" if environment.driver else ""),
        "processors": _processors(records),
        "calls made again": _made_again(records),
        "versions": ", ".join(f"{name} {'/'.join(found)}" for name, found in versions.items()),
        "weights": ", ".join(sorted({f"{w.role} {w.name} {w.sha256[:12]}" for r in records for w in r.weights})),
        "code": ", ".join(sorted({r.code_hash[:12] for r in records})),
    }
    facts |= environment.variables
    return {"title": block.title, "facts": [(name, value) for name, value in facts.items() if value]}


def _processors(records: Sequence[Record]) -> str:
    """What hangs on the day: where timing ran, and beside what."""
    found = [record.environment for record in records]
    threads = sorted({one.threads for one in found if one.threads is not None})
    loads = [one.load for one in found if one.load is not None]
    governors = sorted({one.governor for one in found if one.governor is not None})
    told = [f"{' and '.join(map(str, threads))} threads"] if threads else []
    told += [f"load {min(loads):.1f} to {max(loads):.1f} when the runs began"] if loads else []
    told += [f"clocks by {', '.join(governors)}"] if governors else []
    return ", ".join(told)


def _made_again(records: Sequence[Record]) -> str:
    """Since a call was held up."""
    counted = [record.timing.discarded for record in records if record.timing and record.timing.discarded is not None]
    return f"{sum(counted):,}, since a call was held up" if counted else ""
