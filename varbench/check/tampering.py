"""Promises about what belongs to others: global state, weights, and the functions of varbench and torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from varbench.check.observed import REPLACED
from varbench.check.subject import PlannedRow, UnderTest
from varbench.check.untouched import strangers
from varbench.measure.process_state import CLOCKS


def no_global_state_change(subject: UnderTest) -> Iterator[str]:
    """Random states, default types, switches, clocks and the environment stay as they are at every step."""
    # The real clocks are built in; one that was replaced before anybody looked is not.
    wrong = [clock for clock in CLOCKS if type(getattr(time, clock)) is not type(len)]
    yield from (f"time.{clock} is no clock of Python but {getattr(time, clock)!r}" for clock in wrong)
    yield from subject.observed.changes


def weights_untouched(subject: PlannedRow) -> Iterator[str]:
    """Weights, modules and their hooks are as they were before."""
    made, before, after = subject.bench.as_made[id(subject.pipe)], subject.observed.before, subject.observed.after
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        yield f"{len(changed)} of {len(before)} modules changed while images were made: {', '.join(changed[:3])}"
    # Replaced modules may be of a class that is made with them, so they are held against themselves alone.
    changed = sorted(name for name in made if REPLACED not in name and made[name] != after.get(name))
    if changed and after == before:
        yield f"{len(changed)} of {len(before)} modules are not as they were made: {', '.join(changed[:3])}"


def nothing_replaced(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """Functions of varbench and torch are their own, also while images are made: the engine, what measures, this kit."""
    yield from strangers()
    for subject in subjects:
        for name, step in subject.observed.replaced.items():
            yield f"{subject.row.name}: {name} was replaced while step {step + 1} ran"
