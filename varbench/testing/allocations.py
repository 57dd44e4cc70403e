"""What a generation allocates and holds, seen from outside: neither the engine's ledger nor the plugin is asked.

Every tensor storage that comes to be during the generation is followed by a weak reference, so it does not matter who
holds it or how. Python and numpy memory is followed by tracemalloc, which numpy reports to; buffers that were there
before by their contents; files and processes by an audit hook.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


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
    """Files written, processes started and the like."""


class Allocations(TorchDispatchMode):
    """Follows the storages that operations make while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, StorageWeakRef] = {}
        self._older: dict[int, StorageWeakRef] = {}
        self._written: set[int] = set()

    def alive(self) -> int:
        """Bytes of the storages made so far that somebody still holds."""
        return sum(_bytes(ref) for ref in self._made.values())

    def forget_dead(self) -> None:
        """What is gone need not be remembered; nor would Python give back the room of a table that was once large."""
        self._made, self._older = ({p: ref for p, ref in table.items() if not ref.expired()} for table in (self._made, self._older))

    def written(self) -> int:
        return sum(_bytes(self._older[place]) for place in self._written if place in self._older)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # What `torch.tensor` just made comes in through this operation.
        fresh = func is torch.ops.aten.lift_fresh.default
        for tensor in _tensors((*args, *kwargs.values())):
            place, ref = _reference(tensor)
            if place not in self._made and place not in self._older:
                (self._made if fresh else self._older)[place] = ref
        for tensor in _written_arguments(func, args, kwargs):
            place, _ = _reference(tensor)
            if place in self._older:
                self._written.add(place)
        result = func(*args, **kwargs)
        for tensor in _tensors((result,)):
            place, ref = _reference(tensor)
            if place not in self._older:
                self._made.setdefault(place, ref)
        return result


def _tensors(things: Iterable[Any]) -> Iterator[Tensor]:
    """Operators take and give tensors, and lists of them."""
    for thing in things:
        if isinstance(thing, Tensor):
            if thing.layout == torch.strided:
                yield thing
        elif isinstance(thing, (list, tuple)):
            yield from _tensors(thing)


def _reference(tensor: Tensor) -> tuple[int, StorageWeakRef]:
    """A storage's address, which no other takes while the weak reference lives."""
    ref = StorageWeakRef(tensor.untyped_storage())
    return ref.cdata, ref


def _bytes(ref: StorageWeakRef) -> int:
    if ref.expired():
        return 0
    storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
    return int(storage.nbytes()) if storage is not None else 0


def _written_arguments(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for place, name in _writes_to(func):
        yield from _tensors((args[place] if place < len(args) else kwargs.get(name),))


@functools.cache
def _writes_to(func: Any) -> tuple[tuple[int, str], ...]:
    """Places and names of the arguments that an operator writes into."""
    arguments = enumerate(func._schema.arguments)
    return tuple((place, a.name) for place, a in arguments if a.alias_info is not None and a.alias_info.is_write)


class Memory:
    """Measures one generation: `with Memory() as memory: generate(observer=memory.observe)`."""

    def __init__(self) -> None:
        self.held = Held()
        self._allocations = Allocations()
        self._python = 0

    def __enter__(self) -> Memory:
        # What is there already need not be looked through at every step.
        gc.freeze()
        _audit.events = self.held.reached_out
        tracemalloc.start()
        self._python = tracemalloc.get_traced_memory()[0]
        self._allocations.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._allocations.__exit__(*error)
        _audit.events = None
        self.held.python_at_end = self._traced()
        tracemalloc.stop()
        gc.unfreeze()
        self.held.storages_at_end = self._allocations.alive()
        self.held.written = self._allocations.written()

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
        elif event in ("mmap.__new__", "subprocess.Popen", "os.fork", "os.posix_spawn", "socket.connect", "ctypes.dlopen"):
            self.events.append(f"called {event}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


_audit = _Audit()
_audit.install()


def contents(roots: Iterable[object], *, within: str) -> dict[str, tuple[int, str]]:
    """Bytes and hash of every tensor, array and byte string that can be reached from `roots`.

    The walk follows what objects refer to, and leaves alone other modules than those whose name starts with `within`.
    """
    found: dict[str, tuple[int, str]] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or not _is_own(thing, within):
            continue
        seen.add(id(thing))
        data = _data(thing)
        if data is not None:
            found[f"{type(thing).__name__} {id(thing):x}"] = (len(data), hashlib.sha256(data).hexdigest())
        elif not isinstance(thing, (str, int, float, type(None))):
            waiting += _referents(thing)
    return found


def _is_own(thing: object, within: str) -> bool:
    if isinstance(thing, ModuleType):
        return thing.__name__.startswith(within)
    if isinstance(thing, (type, FunctionType)):
        return str(getattr(thing, "__module__", "")).startswith(within)
    return not isinstance(thing, torch.nn.Module)


def _referents(thing: object) -> list[object]:
    if isinstance(thing, FunctionType):
        # Its globals are its module's, which is a root of its own.
        return [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)] + [thing.__defaults__, thing.__dict__]
    return gc.get_referents(thing)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _data(thing: object) -> bytes | None:
    if isinstance(thing, Tensor) and thing.layout == torch.strided:
        return thing.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(thing, np.ndarray) and thing.dtype != object:
        return thing.tobytes()
    if isinstance(thing, (bytes, bytearray, memoryview)):
        return bytes(thing)
    return None
