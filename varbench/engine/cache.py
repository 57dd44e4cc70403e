"""All state that lives from one step to the next: keys and values of every slot, and remembered outputs.

Buffers are allocated at the sizes that the plan gives and freed as soon as it says so; every byte goes through
`_Ledger`, whose sum is what the trace reports. Letters: R rows (images x branches), H heads of a group, n entries,
c head size, l tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from varbench.plan.steps import Accounting, CacheUse, Segment, SlotKey, total


@dataclass
class _Buffer:
    keys_RHnc: Tensor
    values_RHnc: Tensor
    held: tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        return self.keys_RHnc.nbytes + self.values_RHnc.nbytes

    @property
    def room(self) -> int:
        return self.keys_RHnc.shape[2]


class State:
    """What a generation holds between steps. `nbytes` is exact at any time, `peak` its largest value so far."""

    def __init__(self, *, accounting: Accounting, key_dtype: torch.dtype, value_dtype: torch.dtype) -> None:
        self._upstream = accounting == "upstream"
        self._key_dtype, self._value_dtype = key_dtype, value_dtype
        self._buffers: dict[tuple[SlotKey, int], _Buffer] = {}
        self._memories: dict[tuple[SlotKey, str], Tensor] = {}
        self.nbytes = 0
        self.peak = 0

    def tensors(self) -> Iterable[Tensor]:
        """Every tensor that is held, for checks from outside."""
        for buffer in self._buffers.values():
            yield from (buffer.keys_RHnc, buffer.values_RHnc)
        yield from self._memories.values()

    def _account(self, change: int) -> None:
        self.nbytes += change
        self.peak = max(self.peak, self.nbytes)

    def held(self, key: SlotKey, group: int) -> tuple[Segment, ...]:
        buffer = self._buffers.get((key, group))
        return buffer.held if buffer else ()

    def capacity(self, key: SlotKey, group: int) -> int:
        buffer = self._buffers.get((key, group))
        return buffer.room if buffer else 0

    def extend(
        self, key: SlotKey, group: int, use: CacheUse, keys_RHLc: Tensor, values_RHLc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to: those held, then the call's own. Stores the own ones where they will stay."""
        if self._upstream:
            return self._concatenate(key, group, keys_RHLc, values_RHLc)
        if use.capacity > self.capacity(key, group):
            self._grow(key, group, use.capacity, keys_RHLc)
        buffer = self._buffers.get((key, group))
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
        key: SlotKey,
        group: int,
        use: CacheUse,
        own: tuple[Segment, ...],
        attended: tuple[Tensor, Tensor],
        picked_RHn: Tensor | None,
    ) -> None:
        """Leaves what the plan keeps: nothing, whole scales, or the entries a policy picked."""
        if not use.kept:
            self._free(key, group)
            return
        buffer = self._buffers[key, group]
        entries = (*buffer.held, *own)
        if picked_RHn is not None:
            places = picked_RHn.unsqueeze(-1).expand(-1, -1, -1, attended[0].shape[-1])
            self._replace(buffer, tuple(tensor.gather(2, places) for tensor in attended))
        elif use.kept != entries:
            self._replace(buffer, tuple(_ranges(tensor, entries, use.kept) for tensor in attended))
        elif total(entries) > total(buffer.held) and attended[0].data_ptr() != buffer.keys_RHnc.data_ptr():
            raise AssertionError("entries that stay were given no room")
        buffer.held = use.kept
        if self._upstream:
            self._trim(buffer)

    def _replace(self, buffer: _Buffer, kept: tuple[Tensor, ...]) -> None:
        count = kept[0].shape[2]
        buffer.keys_RHnc[:, :, :count] = kept[0]
        buffer.values_RHnc[:, :, :count] = kept[1]

    def _allocate(self, like_RHLc: Tensor, room: int) -> tuple[Tensor, Tensor]:
        rows, heads, _, size = like_RHLc.shape
        shape = (rows, heads, room, size)
        device = like_RHLc.device
        return (
            torch.empty(shape, dtype=self._key_dtype, device=device),
            torch.empty(shape, dtype=self._value_dtype, device=device),
        )

    def _grow(self, key: SlotKey, group: int, room: int, like_RHLc: Tensor) -> None:
        old = self._buffers.get((key, group))
        keys, values = self._allocate(like_RHLc, room)
        new = _Buffer(keys, values, old.held if old else ())
        if old:
            count = total(old.held)
            new.keys_RHnc[:, :, :count] = old.keys_RHnc[:, :, :count]
            new.values_RHnc[:, :, :count] = old.values_RHnc[:, :, :count]
        self._buffers[key, group] = new
        self._account(new.nbytes - (old.nbytes if old else 0))

    def _concatenate(self, key: SlotKey, group: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the official code does: the cache is a new, longer tensor at every scale."""
        keys, values = keys.to(self._key_dtype), values.to(self._value_dtype)
        old = self._buffers.get((key, group))
        if old:
            keys, values = torch.cat((old.keys_RHnc, keys), dim=2), torch.cat((old.values_RHnc, values), dim=2)
        else:
            keys, values = keys.contiguous(), values.contiguous()
        new = _Buffer(keys, values, old.held if old else ())
        self._buffers[key, group] = new
        self._account(new.nbytes - (old.nbytes if old else 0))
        return keys, values

    def _trim(self, buffer: _Buffer) -> None:
        count = total(buffer.held)
        if count < buffer.room:
            before = buffer.nbytes
            buffer.keys_RHnc = buffer.keys_RHnc[:, :, :count].clone()
            buffer.values_RHnc = buffer.values_RHnc[:, :, :count].clone()
            self._account(buffer.nbytes - before)

    def _free(self, key: SlotKey, group: int) -> None:
        buffer = self._buffers.pop((key, group), None)
        if buffer:
            self._account(-buffer.nbytes)

    def drop_backbone(self, backbone: str) -> None:
        for key, group in [place for place in self._buffers if place[0].backbone == backbone]:
            self._free(key, group)
        for key, name in [place for place in self._memories if place[0].backbone == backbone]:
            self.forget(key, name)

    def keep_rows(self, backbone: str, rows: int) -> None:
        """Frees what belongs to a guidance branch that has ended: rows beyond the first `rows`."""
        for (key, _), buffer in self._buffers.items():
            if key.backbone == backbone and buffer.keys_RHnc.shape[0] > rows:
                before = buffer.nbytes
                buffer.keys_RHnc = buffer.keys_RHnc[:rows].clone()
                buffer.values_RHnc = buffer.values_RHnc[:rows].clone()
                self._account(buffer.nbytes - before)
        for place, memory in self._memories.items():
            if place[0].backbone == backbone and memory.shape[0] > rows:
                self._memories[place] = memory[:rows].clone()
                self._account(self._memories[place].nbytes - memory.nbytes)

    def remember(self, key: SlotKey, name: str, output_RlC: Tensor) -> None:
        """Keeps a sub-layer's output for filling in at later scales."""
        self.forget(key, name)
        self._memories[key, name] = output_RlC.clone()
        self._account(self._memories[key, name].nbytes)

    def recall(self, key: SlotKey, name: str) -> Tensor | None:
        return self._memories.get((key, name))

    def forget(self, key: SlotKey, name: str) -> None:
        memory = self._memories.pop((key, name), None)
        if memory is not None:
            self._account(-memory.nbytes)


def _ranges(tensor_RHnc: Tensor, entries: tuple[Segment, ...], kept: tuple[Segment, ...]) -> Tensor:
    """The entries of the kept segments, in order."""
    wanted = list(kept)
    parts, start = [], 0
    for segment in entries:
        if wanted and segment == wanted[0]:
            parts.append(tensor_RHnc[:, :, start : start + segment.count])
            wanted.pop(0)
        start += segment.count
    if wanted:
        raise AssertionError(f"the plan keeps {wanted}, which is not there")
    return torch.cat(parts, dim=2)
