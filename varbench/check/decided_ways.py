"""Where a method decides by content how generation goes on: every way that it declares, taken on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from varbench.check.sent_ways import noted, sent
from varbench.check.stand_ins import Notes
from varbench.check.subject import LABELS, PlannedRow
from varbench.engine.pipeline import Output
from varbench.plan.trace import otherwise_than_planned

EQUAL = 0.999
"""Share of tokens that must be those of a batch that goes one way."""


def decided_as_declared(subject: PlannedRow) -> Iterator[str]:
    """Each image goes the way that is decided for it, computes and keeps what the plan has there, and comes out as in a batch
    that goes that way altogether."""
    decision = subject.plan.decision
    if decision is None:
        return
    answers: list[Tensor] = []
    made = subject.generate(noted(subject.row, answers, Notes()))
    told = answers[0].tolist()
    yield from _taken_as(subject, made, told)
    alone = {}
    for way in range(len(decision.ways)):
        alone[way] = subject.generate(sent(subject.row, (way,)))
        yield from _taken_as(subject, alone[way], [way] * len(LABELS))
    batches = [(made, told)]
    if not decision.together:
        for first in range(0, len(alone), len(LABELS)):
            ways = [(first + image) % len(alone) for image in range(len(LABELS))]
            mixed = subject.generate(sent(subject.row, ways))
            yield from _taken_as(subject, mixed, ways)
            batches.append((mixed, ways))
    for batch, ways in batches:
        expected = torch.stack([alone[way].tokens[image] for image, way in enumerate(ways)])
        share = float((batch.tokens == expected).float().mean())
        if share < EQUAL:
            yield (
                f"images that go ways {ways} share {share:.1%} of their tokens with those of batches that go one way; at least "
                f"{EQUAL:.1%} must be equal"
            )


def _taken_as(subject: PlannedRow, made: Output, ways: Sequence[int]) -> Iterator[str]:
    """Where what ran is not what was decided."""
    assert subject.plan.decision is not None
    counts = tuple(torch.bincount(torch.tensor(ways), minlength=len(subject.plan.decision.ways)).tolist())
    if made.trace.taken != counts:
        yield f"it was decided that {counts} images go its ways, and {made.trace.taken} went"
    for difference in otherwise_than_planned(subject.plan, made.trace, batch=len(LABELS), dtype="float32"):
        yield f"on the ways {list(ways)}, {difference}"
        break
