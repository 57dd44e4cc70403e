"""Python's collector of cycles, left out where millions of objects are made that all stay: it would look at them over and over,
which takes longer than to make them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """For what a process does last: what was made meanwhile is not looked at later either, not even when the process ends."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.freeze()
            gc.enable()
