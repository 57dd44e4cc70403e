"""Children that work at the same time, each of which has one thing to say in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from varbench.record.failure import Failure, RowError
from varbench.run.children import Child, ChildEndedError, wait_for_any

Said = TypeVar("Said")


def side_by_side(
    starts: Mapping[str, Callable[[], Child]], kind: type[Said], *, at_once: int
) -> Iterator[tuple[str, Said | Failure]]:
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
                said: Said | Failure
                try:
                    if not child.listen():
                        continue
                    said = child.receive(kind)
                except (ChildEndedError, RowError) as error:
                    said = error.failure
                running.pop(name).end()
                yield name, said
