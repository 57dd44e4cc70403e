"""Bytes of tensors, asked of the memory behind them."""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Storages:
    """Counts the memory that was taken for as long as anybody holds it, be it by a view.

    So what is let go but not freed still counts, and what is held twice counts once.
    """

    def __init__(self) -> None:
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._let_go: set[int] = set()
        self._nbytes = 0

    def take(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            ref = StorageWeakRef(storage)
            if ref.cdata not in self._alive:
                self._alive[ref.cdata] = ref, storage.nbytes()
                self._nbytes += storage.nbytes()

    def let_go(self, *tensors: Tensor) -> None:
        """To be told only so that `nbytes` need not look at all others too."""
        self._let_go |= {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}

    @property
    def nbytes(self) -> int:
        for place in [place for place in self._let_go if self._alive[place][0].expired()]:
            self._let_go.remove(place)
            self._nbytes -= self._alive.pop(place)[1]
        return self._nbytes
