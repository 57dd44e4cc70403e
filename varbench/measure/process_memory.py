"""All private memory that a process uses, whoever asked for it: what no garbage collector and no allocator of torch knows."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def private_bytes() -> int | None:
    """What the C library has handed out, and what was mapped without it. None where the system does not tell.

    Resident memory would hold what was freed long ago; this falls with every `free`.
    """
    ask = _mallinfo()
    if ask is None:
        return None
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    known = ask()
    data = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    mapped = int(data.group(1)) * 1024 if data else 0
    # Of its own mappings only what is handed out counts: it keeps freed memory.
    return int(known.uordblks + known.hblkhd + max(0, mapped - known.arena - known.hblkhd))


@functools.cache
def _mallinfo() -> Callable[[], Any] | None:
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    ask.restype = Mallinfo
    return ask
