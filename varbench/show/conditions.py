"""What rows must share to stand in one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from varbench.record import Record
from varbench.record.option_forms import compared

Conditions = tuple[tuple[str, Any], ...]


def conditions_of(record: Record) -> dict[str, Any]:
    """What two rows must share to stand in one table. Accounting is not among them: both denominators are shown."""
    return {
        "preset": record.model.preset,
        "weights": "random" if record.model.weights == "random" else "trained",
        "device": record.environment.device,
        "machine": record.environment.machine,
        **compared(record.protocol),
    }


def with_conditions(records: Sequence[Record]) -> Iterator[tuple[Record, Conditions]]:
    """Of records none of which is timed the machine is nobody's condition: what is seen in images does not depend on it."""
    wherever = [tuple({**conditions_of(record), "machine": None}.items()) for record in records]
    timed = {alike for record, alike in zip(records, wherever, strict=True) if record.timing is not None}
    for record, alike in zip(records, wherever, strict=True):
        yield record, tuple(conditions_of(record).items()) if alike in timed else alike
