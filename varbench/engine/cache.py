"""All state that lives from one step to the next: keys and values of every slot, and remembered outputs.

Buffers are allocated at the sizes that the plan gives and freed as soon as it says so. Letters: R rows (images x
branches), H heads of a group, n entries, c head size, l tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varbench.engine.storages import Storages
from varbench.plan.steps import MIXED, Accounting, CacheUse, Segment, SlotKey, total

Place = tuple[SlotKey, int]
"""A slot, and which group of its heads."""


@dataclass
class _Buffer:
    keys_RHnc: Tensor
    values_RHnc: Tensor
    held: tuple[Segment, ...]
    """What lies in it, from its first entry on; the rest is room."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.keys_RHnc, self.values_RHnc

    @property
    def room(self) -> int:
        return self.keys_RHnc.shape[2]


class State:
    """What a generation holds between steps."""

    def __init__(self, *, accounting: Accounting, key_dtype: torch.dtype, value_dtype: torch.dtype) -> None:
        self._upstream = accounting == "upstream"
        self._key_dtype, self._value_dtype = key_dtype, value_dtype
        self._buffers: dict[Place, _Buffer] = {}
        self._memories: dict[tuple[SlotKey, str], Tensor] = {}
        self._storages = Storages()

    @property
    def nbytes(self) -> int:
        """Bytes of all that it took and that somebody still holds."""
        return self._storages.nbytes

    def entries(self, place: Place) -> tuple[int, int]:
        """How many entries are held, and how many there is room for."""
        buffer = self._buffers.get(place)
        return (total(buffer.held), buffer.room) if buffer else (0, 0)

    def extend(self, place: Place, use: CacheUse, keys_RHLc: Tensor, values_RHLc: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to: those held, then the call's own. Stores the own ones where they will stay."""
        if self._upstream:
            return self._concatenate(place, keys_RHLc, values_RHLc)
        if use.capacity > self.entries(place)[1]:
            self._grow(place, use.capacity, keys_RHLc)
        buffer = self._buffers.get(place)
        if buffer is None:
            return keys_RHLc, values_RHLc
        before = total(buffer.held)
        after = before + keys_RHLc.shape[2]
        if after <= buffer.room:
            buffer.keys_RHnc[:, :, before:after] = keys_RHLc
            buffer.values_RHnc[:, :, before:after] = values_RHLc
            return buffer.keys_RHnc[:, :, :after], buffer.values_RHnc[:, :, :after]
        # What is read only now is not stored, so it has no room in the buffer: put both together for this call alone.
        held = buffer.keys_RHnc[:, :, :before], buffer.values_RHnc[:, :, :before]
        return (
            torch.cat((held[0].to(keys_RHLc.dtype), keys_RHLc), dim=2),
            torch.cat((held[1].to(values_RHLc.dtype), values_RHLc), dim=2),
        )

    def settle(
        self,
        place: Place,
        use: CacheUse,
        own: tuple[Segment, ...],
        attended: tuple[Tensor, Tensor],
        picked_RHn: Tensor | None,
    ) -> None:
        """Leaves what the plan keeps: nothing, whole scales, or the entries a policy picked."""
        if not use.kept:
            self._free(place)
            return
        buffer = self._buffers[place]
        entries = (*buffer.held, *own)
        if picked_RHn is not None:
            places = picked_RHn.unsqueeze(-1).expand(-1, -1, -1, attended[0].shape[-1])
            _replace(buffer, tuple(tensor.gather(2, places) for tensor in attended))
            buffer.held = (Segment(MIXED, picked_RHn.shape[-1]),)
        elif use.kept != entries:
            spans = _spans(entries, use.kept)
            _replace(buffer, tuple(torch.cat([tensor[:, :, a:b] for a, b in spans], dim=2) for tensor in attended))
            buffer.held = tuple(spans.values())
        elif total(own) and attended[0].data_ptr() != buffer.keys_RHnc.data_ptr():
            raise AssertionError("entries that stay were given no room")
        else:
            buffer.held = entries
        if self._upstream:
            self._trim(place)

    def _put(self, place: Place, buffer: _Buffer | None) -> None:
        """In the place of what was there, which nobody should hold after the caller has returned."""
        old = self._buffers.pop(place, None)
        if old:
            self._storages.let_go(*old.tensors)
        if buffer:
            self._buffers[place] = buffer
            self._storages.take(*buffer.tensors)

    def _grow(self, place: Place, room: int, like_RHLc: Tensor) -> None:
        rows, heads, _, size = like_RHLc.shape
        shape, device, old = (rows, heads, room, size), like_RHLc.device, self._buffers.get(place)
        new = _Buffer(
            torch.empty(shape, dtype=self._key_dtype, device=device),
            torch.empty(shape, dtype=self._value_dtype, device=device),
            old.held if old else (),
        )
        if old:
            count = total(old.held)
            _replace(new, tuple(tensor[:, :, :count] for tensor in old.tensors))
        self._put(place, new)

    def _concatenate(self, place: Place, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the official code does: the cache is a new, longer tensor at every scale."""
        keys, values = keys.to(self._key_dtype), values.to(self._value_dtype)
        old = self._buffers.get(place)
        earlier = old.tensors if old else (keys[:, :, :0], values[:, :, :0])
        keys, values = torch.cat((earlier[0], keys), dim=2), torch.cat((earlier[1], values), dim=2)
        self._put(place, _Buffer(keys, values, old.held if old else ()))
        return keys, values

    def _trim(self, place: Place) -> None:
        buffer = self._buffers[place]
        count = total(buffer.held)
        if count < buffer.room:
            keys, values = (tensor[:, :, :count].clone() for tensor in buffer.tensors)
            self._put(place, _Buffer(keys, values, buffer.held))

    def _free(self, place: Place) -> None:
        self._put(place, None)

    def drop_backbone(self, backbone: str) -> None:
        for place in [place for place in self._buffers if place[0].backbone == backbone]:
            self._free(place)
        for key, name in [place for place in self._memories if place[0].backbone == backbone]:
            self.forget(key, name)

    def keep_rows(self, backbone: str, rows: int) -> None:
        """Frees what belongs to a guidance branch that has ended: rows beyond the first `rows`."""
        for place, buffer in list(self._buffers.items()):
            if place[0].backbone == backbone and buffer.keys_RHnc.shape[0] > rows:
                keys, values = (tensor[:rows].clone() for tensor in buffer.tensors)
                self._put(place, _Buffer(keys, values, buffer.held))
        for (key, name), memory in list(self._memories.items()):
            if key.backbone == backbone and memory.shape[0] > rows:
                self.remember(key, name, memory[:rows])

    def remember(self, key: SlotKey, name: str, output_RlC: Tensor) -> None:
        """Keeps a sub-layer's output for filling in at later scales."""
        self.forget(key, name)
        self._memories[key, name] = output_RlC.clone()
        self._storages.take(self._memories[key, name])

    def recall(self, key: SlotKey, name: str) -> Tensor | None:
        return self._memories.get((key, name))

    def forget(self, key: SlotKey, name: str) -> None:
        memory = self._memories.pop((key, name), None)
        if memory is not None:
            self._storages.let_go(memory)


def _replace(buffer: _Buffer, kept: tuple[Tensor, ...]) -> None:
    """Puts these entries at the buffer's beginning."""
    count = kept[0].shape[2]
    buffer.keys_RHnc[:, :, :count] = kept[0]
    buffer.values_RHnc[:, :, :count] = kept[1]


def _spans(entries: tuple[Segment, ...], kept: tuple[Segment, ...]) -> dict[tuple[int, int], Segment]:
    """Where the kept segments lie among the entries, in order."""
    spans: dict[tuple[int, int], Segment] = {}
    wanted, start = list(kept), 0
    for segment in entries:
        if wanted and segment == wanted[0]:
            spans[start, start + segment.count] = wanted.pop(0)
        start += segment.count
    if wanted:
        raise AssertionError(f"the plan keeps {wanted}, which is not there")
    return spans
