"""Bytes behind tensors."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from itertools import compress

import torch
from torch import Tensor


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Views of one storage count once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def live_bytes(device: torch.device) -> int:
    """Bytes of every tensor that anything in this process can reach: what a policy hides is in here."""
    return storage_bytes(live_tensors(device))


def live_tensors(device: torch.device) -> Iterator[Tensor]:
    objects = gc.get_objects()
    # `type()` and not isinstance: the latter runs code of whatever object this is. By kind, since there are few of them.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Tensor)}
    for found in compress(objects, map(kinds.__contains__, map(type, objects))):
        if found.device.type == device.type and found.layout == torch.strided:
            yield found
