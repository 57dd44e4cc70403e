"""A promise about weights: a row holds the bytes that its plan says."""

from __future__ import annotations

from collections.abc import Iterator

from varbench.check.subject import PlannedRow
from varbench.engine.storage import storage_bytes
from varbench.engine.transforms import stored
from varbench.plan.sizes import backbone_bytes

BYTES_AGREE = 0.01


def weights_equal_plan(subject: PlannedRow) -> Iterator[str]:
    """Bytes of weights, by storage, are those that the plan says, within 1 %: also where a transform replaced modules."""
    _ = subject.first
    for name, model in subject.pipe.backbones_of(subject.row).items():
        planned, held = backbone_bytes(subject.plan, name, "float32"), storage_bytes(stored(model))
        if abs(held - planned) > BYTES_AGREE * planned:
            yield f"{name} holds {held:,} bytes of weights, and the plan says {planned:,} ({held / planned - 1:+.1%})"
