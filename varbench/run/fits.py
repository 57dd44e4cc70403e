"""Whether the rows of a run fit into memory, said before the first of them runs. A forecast: the row is tried all the same."""

from __future__ import annotations

from collections.abc import Iterator

from varbench.measure.largest import largest_by_plan, misfit
from varbench.run.prepare import Run


def misfits(run: Run, *, free: int | None) -> dict[str, str]:
    """What is said of each row that does not fit, by row; nothing where nobody knows how much memory is free."""
    if free is None:
        return {}
    options = run.options
    found = {
        name: misfit(row.plan, batch=options.batch, dtype=options.dtype, free=free, device=options.device)
        for name, row in run.rows.items()
        if row.plan is not None
    }
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def in_lines(run: Run, found: dict[str, str], *, free: int) -> Iterator[str]:
    """For people, with the batch that all rows fit at."""
    for name, sentence in found.items():
        yield f"warning: {name} {sentence}"
    options = run.options
    plans = [row.plan for name, row in run.rows.items() if name in found and row.plan is not None]
    largest = min(
        (largest_by_plan(plan, dtype=options.dtype, free=free, device=options.device).batch for plan in plans),
        default=0,
    )
    if largest:
        yield f"next: the same command with --batch {largest}"
