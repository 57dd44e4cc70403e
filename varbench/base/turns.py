"""One process at a time, by a lock on a file that goes with the process that holds it, however that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_at_a_time(lock: Path, *, while_waiting: Callable[[], None], every_seconds: float = 1.0) -> Iterator[None]:
    """Waits until no other process holds the lock; `while_waiting` is called now and then meanwhile."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        if os.name == "posix":  # elsewhere two processes do the same work twice, and the same result is written
            import fcntl

            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    while_waiting()
                    time.sleep(every_seconds)
                else:
                    break
        yield
