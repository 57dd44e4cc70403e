"""Storages that operators make, followed by weak references: who holds one, and how, does not matter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Follows the storages that operations make while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._made: dict[int, StorageWeakRef] = {}
        self._older: dict[int, StorageWeakRef] = {}
        self._written: set[int] = set()
        self._opaque: WeakSet[Tensor] = WeakSet()

    def alive(self) -> int:
        """Bytes of the storages made so far that somebody still holds; of tensors without one, such as sparse ones, all."""
        opaque = sum(tensor.numel() * tensor.element_size() for tensor in self._opaque)
        return opaque + sum(_bytes(ref) for ref in self._made.values())

    def forget_dead(self) -> None:
        """What is gone need not be remembered; nor would Python give back the room of a table that was once large."""
        self._made, self._older = (
            {p: ref for p, ref in table.items() if not ref.expired()} for table in (self._made, self._older)
        )

    def written(self) -> int:
        return sum(_bytes(self._older[place]) for place in self._written if place in self._older)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as for products: torch's compiler would be loaded for nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # What `torch.tensor` just made comes in through this operation.
        fresh = func is torch.ops.aten.lift_fresh.default
        for tensor in _tensors((*args, *kwargs.values())):
            self._note(tensor, self._made if fresh else self._older)
        for tensor in _written_arguments(func, args, kwargs):
            place = tensor.untyped_storage()._cdata
            if place in self._older:
                self._written.add(place)
        result = func(*args, **kwargs)
        for tensor in _tensors((result,)):
            self._note(tensor, self._made)
        if isinstance(result, Tensor) and result.layout != torch.strided:
            self._opaque.add(result)
        return result

    def _note(self, tensor: Tensor, table: dict[int, StorageWeakRef]) -> None:
        """By its storage's address, which no other takes while a weak reference lives."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._made and storage._cdata not in self._older:
            ref = StorageWeakRef(storage)
            table[ref.cdata] = ref


def _tensors(things: Iterable[Any]) -> Iterator[Tensor]:
    """Operators take and give tensors, and lists of them."""
    for thing in things:
        if isinstance(thing, Tensor):
            if thing.layout == torch.strided:
                yield thing
        elif isinstance(thing, (list, tuple)):
            yield from _tensors(thing)


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


class _Curve(Allocations):
    """Bytes that are alive after each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.alive_after: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.alive_after) % 64 == 0:
            self.forget_dead()
        self.alive_after.append(self.alive())
        return result


def held_through_a_step(call: Callable[[], object], *, steps: int) -> int:
    """Bytes of tensors that a call of so many equal steps makes and holds for longer than a step: its state.

    Activations come and go within a step. So of any stretch of operators that is as long as a step, the least that is alive is
    what was there at the step's end; the most of these over the call is what its state grows to.
    """
    with _Curve() as curve:
        call()
    alive = curve.alive_after
    stretch = max(1, -(-len(alive) // max(1, steps)))
    return max((min(alive[at : at + stretch]) for at in range(0, len(alive) - stretch + 1, stretch)), default=0)
