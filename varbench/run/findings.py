"""What is known of a row so far, as typed parts that are replaced as they come, and kept on disk as they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from varbench.base.whole_files import lay_there, write_whole
from varbench.measure.calls import CountedFlops, Peaks, Traced
from varbench.measure.speed import SpeedRound
from varbench.plan.trace import Trace
from varbench.record import Energy, LargestBatch, RecordError, Score, Totals, decode, encode
from varbench.record.failure import Failure
from varbench.run.messages import Ready, Scored, Trained

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What one call of a row holds in memory, and whether equal calls gave equal results."""

    batch: int
    peaks: Peaks
    trace: Trace | None
    work: Totals | None
    """What a row that replaces the loop says of itself."""
    products: CountedFlops | None = None
    """Of such a row: FLOPs as stated, and as torch counted them."""
    held: int | None = None
    """Of such a row: bytes that were seen to be held for longer than a step."""
    kernel: str | None
    """Attention kernel that torch chose."""
    arithmetic: str | None
    """Types of products and convolutions, and how they were done."""
    findings: tuple[str, ...]
    """What is not as it should be."""
    changed: tuple[str, ...]
    """Global state that the calls changed."""
    from_bytes: bool = False
    """Of a row that replaces the loop: its images lie on the levels of bytes, so they were bytes already."""
    largest: LargestBatch | None = None
    energy: Energy | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Scores of a row's images."""

    scored: Scored
    metrics: dict[str, Score] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    """Hashes of the images, by batch: the same images must come out where they are asked for among timed calls."""
    traces: tuple[Traced, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything known of one row so far."""

    started: str | None = None
    failure: Failure | None = None
    exit_code: int | None = None
    stderr_tail: str = ""
    loaded: Ready | None = None
    trained: Trained | None = None
    seen: Seen | None = None
    looks: Looks | None = None
    speed: dict[int, SpeedRound] = field(default_factory=dict)
    """By round."""
    mismatches: tuple[str, ...] = ()
    """Where a child ran something else than the parent prepared."""
    earlier: frozenset[str] = frozenset()
    """Parts that an earlier run on this machine had left."""


def keep(part: object, path: Path) -> None:
    write_whole(path, json.dumps(encode(part, type(part).__name__), allow_nan=False).encode())


def kept(kind: type[Part], path: Path, *, before: int) -> Part | None:
    """The part in this file, if it lay there before; None if it did not, or cannot be read as one."""
    try:
        if not lay_there(path, before=before):
            return None
        return decode(kind, json.loads(path.read_bytes()), kind.__name__)
    except (OSError, ValueError, RecordError):
        return None
