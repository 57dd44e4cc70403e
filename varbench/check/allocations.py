"""What a generation allocates and holds, seen from outside: neither the engine's ledger nor the plugin is asked.

Every tensor storage that comes to be during the generation is followed by a weak reference, so it does not matter who
holds it or how. Python and numpy memory is followed by tracemalloc, which numpy reports to; buffers that were there
before by their contents, wherever they hang; files, processes and threads by an audit hook, and by the bytes that the
system saw written.
"""

from __future__ import annotations

import array
import ctypes
import gc
import hashlib
import mmap
import os
import sys
import threading
import tracemalloc
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from varbench.measure.made_storages import Allocations


@dataclass
class Held:
    """Bytes alive at the end of each step, and after the generation's result was let go."""

    storages: list[int] = field(default_factory=list)
    python: list[int] = field(default_factory=list)
    storages_at_end: int = 0
    python_at_end: int = 0
    written: int = 0
    """Bytes of storages, older than the generation and still alive, that it wrote into."""
    reached_out: list[str] = field(default_factory=list)
    """Files written, processes and threads started and the like."""
    taken: tuple[int, ...] = ()
    """How many images went each way, where the plan has several."""
    sent: int = 0
    """Bytes handed to the system to be written, to whatever."""


class Watched:
    """Measures one generation: `with Watched() as memory: generate(observer=memory.observe)`."""

    def __init__(self) -> None:
        self.held = Held()
        self._allocations = Allocations()
        self._python = 0

    def __enter__(self) -> Watched:
        # What is there already need not be looked through at every step.
        gc.freeze()
        _audit.events = self.held.reached_out
        threading.setprofile(self._new_thread)
        self._sent = sent_bytes()
        tracemalloc.start()
        self._python = tracemalloc.get_traced_memory()[0]
        self._allocations.__enter__()  # type: ignore[no-untyped-call]  # torch gives it no types
        return self

    def __exit__(self, *error: object) -> None:
        self._allocations.__exit__(*error)  # type: ignore[no-untyped-call]  # torch gives it no types
        _audit.events = None
        threading.setprofile(None)
        self.held.sent = sent_bytes() - self._sent
        self.held.python_at_end = self._traced()
        tracemalloc.stop()
        gc.unfreeze()
        self.held.storages_at_end = self._allocations.alive()
        self.held.written = self._allocations.written()

    def _new_thread(self, frame: Any, event: str, argument: Any) -> None:
        """Called in a thread that has just begun; what it computes is counted by nobody."""
        sys.setprofile(None)
        self.held.reached_out.append("started a thread")

    def observe(self, moment: str, step: int) -> None:
        if moment == "end":
            self.held.python.append(self._traced())
            self.held.storages.append(self._allocations.alive())

    def _traced(self) -> int:
        """Python memory since the beginning, less what the observation itself takes."""
        self._allocations.forget_dead()
        # Also empties the lists of freed objects that Python keeps for later, which would count as memory in use.
        gc.collect()
        own = sum(map(sys.getsizeof, (self._allocations._made, self._allocations._older)))
        own += sum(map(_reference_size, (self._allocations._made, self._allocations._older)))
        return tracemalloc.get_traced_memory()[0] - self._python - own


def _reference_size(table: dict[int, StorageWeakRef]) -> int:
    return sum(sys.getsizeof(place) + sys.getsizeof(ref) + sys.getsizeof(ref.cdata) for place, ref in table.items())


_OUTSIDE = ("mmap.__new__", "subprocess.Popen", "os.fork", "os.posix_spawn", "socket.connect", "ctypes.dlopen")


def sent_bytes() -> int:
    """Bytes that the process has handed to the system to be written; 0 where the system does not say."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(text.partition("wchar:")[2].split()[0])


class _Audit:
    """Audit hooks cannot be taken off again: one for the process, which looks only while somebody listens."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        self._installed = False

    def install(self) -> None:
        if not self._installed:
            self._installed = True
            sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.events is None:
            return
        if event == "open" and _writes(arguments):
            self.events.append(f"wrote the file {arguments[0]}")
        elif event in _OUTSIDE:
            self.events.append(f"called {event}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


_audit = _Audit()
_audit.install()


BUFFERS = (Tensor, np.ndarray, bytearray, memoryview, array.array, mmap.mmap, ctypes.Array, ctypes.Structure)


def contents() -> dict[int, tuple[Any, str]]:
    """Every buffer that anything in this process refers to, with its hash, by identity."""
    tracked = gc.get_objects()
    # One call for all of them: what the collector does not track, such as arrays, is referred to by what it does.
    referred = gc.get_referents(*tracked)
    buffers: dict[int, Any] = {}
    for things in (tracked, referred):
        kinds = {kind for kind in set(map(type, things)) if issubclass(kind, BUFFERS)}
        # There are millions of them, so the loop over all is left to C.
        buffers |= {id(thing): thing for thing in compress(things, map(kinds.__contains__, map(type, things)))}
    data = ((place, thing, _data(thing)) for place, thing in buffers.items())
    return {place: (thing, hashlib.sha256(bytes_).hexdigest()) for place, thing, bytes_ in data if bytes_ is not None}


def _data(thing: Any) -> memoryview | None:
    if isinstance(thing, Tensor):
        if thing.layout != torch.strided or thing.device.type != "cpu" or not thing.numel():
            return None
        if is_traceable_wrapper_subclass(thing):  # holds nothing itself: the tensors that it is made of are looked at
            return None
        thing = thing.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(thing, np.ndarray):
        if thing.dtype.hasobject:
            return None
        # As a plain array: subclasses such as numpy's masked ones do more than look when they are asked for bytes.
        thing = np.asarray(thing).tobytes()
    try:
        return memoryview(thing).cast("B")
    except (TypeError, ValueError, BufferError):
        return None
