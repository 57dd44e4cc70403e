"""The table that a run ends with, for people on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from varbench.record import Record, Status
from varbench.show import formatting
from varbench.show.entries import Block, Entry, blocks_of, score_label
from varbench.show.header_footer import notices


def as_table(records: Sequence[Record]) -> str:
    """One table a block of like conditions; under it what is wrong with rows, and what to do about it."""
    return "\n\n".join(_block(block) for block in blocks_of(records))


def _block(block: Block) -> str:
    from tabulate import tabulate

    headline = block.headline
    headings = [
        "row", score_label(headline) if headline else "quality", "accuracy", "speedup", "vs upstream", "batch time",
        "latency", "state peak", "end", "work", "",
    ]  # fmt: skip
    studied = [entry for entries in block.studies.values() for entry in entries]
    table = tabulate(
        [_row(entry, block) for entry in (*block.entries, *studied)], headings, tablefmt="simple", disable_numparse=True, stralign="right",
        colalign=("left",),
    )  # fmt: skip
    lines = [block.title, "", table]
    if any(entry.timed != "transformer" for entry in block.entries):
        lines.append(
            f"{formatting.WITH_DECODER} with the decoder, in the full model's time too: the row has no transformer to time alone."
        )
    if block.floor is not None:
        lines.append(
            f"The full model differs from itself by {block.floor:.1%} here; a smaller difference in speed is none."
        )
    floors = next((e.first.quality.floors for e in block.entries if e.first.quality and e.first.quality.floors), {})
    if floors:
        said = [f"{name} {formatting.number(score.value)}" for name, score in floors.items() if score.value is not None]
        lines.append(f"Floors of {headline.name if headline else 'the score'}: {', '.join(said)}.")
    return "\n".join(lines)


def _row(entry: Entry, block: Block) -> list[str]:
    accuracy = entry.score("class accuracy")
    latency = entry.seconds("end_to_end", "latency")
    batch, mark = (
        entry.seconds(entry.timed, "throughput"),
        "" if entry.timed == "transformer" else formatting.WITH_DECODER,
    )
    work, full = entry.work, block.full.get("lossless")
    whole = full.work.flops if full and full.work else None
    share = f"{work.flops / whole:.0%}" if work and work.flops and whole else "-"
    return [
        entry.name,
        formatting.with_interval(entry.quality) if entry.quality else "-",
        f"{accuracy.value:.1%}" if accuracy else "-",
        _speedup(entry, "lossless"),
        _speedup(entry, "upstream"),
        f"{formatting.seconds(batch.value)}{mark}" if batch else "-",
        formatting.seconds(latency.value) if latency else "-",
        formatting.size(work.state_peak_bytes) if work and work.state_peak_bytes is not None else "-",
        formatting.size(work.state_end_bytes) if work and work.state_end_bytes is not None else "-",
        share,
        _verdict(entry.first),
    ]


def _speedup(entry: Entry, accounting: str) -> str:
    found = entry.speedups.get(accounting)
    if found is None:
        return "-"
    half = (found.high - found.low) / 2
    mark = "" if entry.timed == "transformer" else formatting.WITH_DECODER
    return f"{found.value:.2f}x{mark}" + (f" ± {half:.2f}" if half else "")


def _verdict(record: Record) -> str:
    if record.status is not Status.COMPLETE:
        return record.status.replace("_", " ")
    return record.validity.verdict.value


def remarks(records: Sequence[Record]) -> list[str]:
    """One line for every row that failed, is invalid, or should be measured better."""
    lines = []
    for record in records:
        if record.status is not Status.COMPLETE:
            lines.append(f"{record.row.row}: {record.status.replace('_', ' ')}: {record.reason}")
        elif record.validity.verdict != "valid":
            lines.append(f"{record.row.row}: invalid: {'; '.join(record.validity.reasons)}")
    for notice in notices(records):
        if notice["next_command"]:
            also = f" (and {notice['count'] - 1} rows more)" if notice["count"] > 1 else ""
            lines.append(f"{notice['text']}{also}; next: {notice['next_command']}")
    return lines
