"""Children that work at the same time, each of which has one thing to say in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from varbench.record.failure import Failure, RowError
from varbench.run.children import Child, ChildEndedError, wait_for_any

Report = TypeVar("Report")


def side_by_side(
    starts: Mapping[str, Callable[[], Child]], kind: type[Report], *, at_once: int
) -> Iterator[tuple[str, Report | Failure]]:
    """What each child report, by name, as it comes; where one failed, its `Failure`, which costs the others nothing."""
    waiting = list(starts)
    running: dict[str, Child] = {}
    with contextlib.ExitStack() as ended:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                running[name] = ended.enter_context(starts[name]())
            wait_for_any(running.values())
            for name, child in list(running.items()):
                report: Report | Failure
                try:
                    if not child.listen():
                        continue
                    report = child.receive(kind)
                except (ChildEndedError, RowError) as error:
                    report = error.failure
                running.pop(name).end()
                yield name, report
