"""Children that work at the same time, each of which has one thing to say in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from varbench.record.failure import RowError
from varbench.run.children import Child, ChildEndedError, wait_for_any


def side_by_side(starts: Mapping[str, Callable[[], Child]], *, at_once: int) -> Iterator[tuple[str, Any]]:
    """What each child said, by name, as it comes; where one failed, its `Failure`, which costs the others nothing."""
    waiting = list(starts)
    running: dict[str, Child] = {}
    with contextlib.ExitStack() as ended:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                running[name] = ended.enter_context(starts[name]())
            wait_for_any(running.values())
            for name, child in list(running.items()):
                try:
                    if not child.listen():
                        continue
                    said = child.receive()
                except (ChildEndedError, RowError) as error:
                    said = error.failure
                running.pop(name).end()
                yield name, said
