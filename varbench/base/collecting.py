"""Python's collector of cycles, left out where millions of objects are made that all stay: it would look at them over and over,
which takes longer than to make them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.freeze()  # nor does it look at them when it is back
            gc.enable()
