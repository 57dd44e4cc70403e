"""All state that lives from one step to the next: keys and values of every slot, and remembered outputs.

Buffers are allocated at the sizes that the plan gives and freed as soon as it says so. Letters: R rows (images x
branches), H heads of a group, n entries, c head size, l tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varbench.engine.cache_entries import EncodedForm, PlainForm
from varbench.engine.storages import Storages
from varbench.model.fused import put
from varbench.model.transformer import Attention
from varbench.plan.state import Branches, Needed, of_attention
from varbench.plan.steps import MIXED, Accounting, CachePlace, CacheUse, Segment, SlotKey, total


@dataclass
class _Buffer:
    tensors: tuple[Tensor, ...]
    """What is stored of keys, then of values, each (R, H, n, ·): the two themselves, or what a form makes of them."""
    held: tuple[Segment, ...]
    """What the plan has in it, from its first entry on; the rest is room."""

    @property
    def room(self) -> int:
        return self.tensors[0].shape[2]

    def upto(self, count: int) -> tuple[Tensor, ...]:
        return tuple(tensor[:, :, :count] for tensor in self.tensors)


@dataclass(frozen=True)
class Space:
    """Where keys and values are attended to: those held, and behind them room for a call's own, which are put there at once."""

    all: tuple[Tensor, Tensor]
    """Keys and values (R, H, n, c)."""
    held: int

    @property
    def own(self) -> tuple[Tensor, Tensor]:
        keys, values = self.all
        return keys[:, :, self.held :], values[:, :, self.held :]


@dataclass(frozen=True)
class StatePart:
    """Some of the images, and what they still need."""

    needed: Needed
    images_n: Tensor
    """Their places."""
    batch: int
    """Of all images."""
    branches: Mapping[str, Branches]
    """By backbone, how many of the guidance branches they need."""

    def rows_of(self, tensor_Rx: Tensor, backbone: str, *, attention: bool) -> Tensor:
        """Their labelled rows, then as many unlabelled ones where they need them."""
        needed = self.branches[backbone]
        count = needed.attending if attention else needed.branches
        return tensor_Rx[torch.cat([self.images_n + branch * self.batch for branch in range(count)])]


class State:
    """What a generation holds between steps."""

    def __init__(
        self, *, accounting: Accounting, form: PlainForm | EncodedForm, storages: Storages | None = None
    ) -> None:
        self._accounting, self._upstream, self._form = accounting, accounting == "upstream", form
        self._buffers: dict[CachePlace, _Buffer] = {}
        self._stored: dict[CachePlace, tuple[Tensor, ...]] = {}
        """All entries of a call in a form that is not what is attended to, until it settles."""
        self._memories: dict[tuple[SlotKey, str], Tensor] = {}
        self._storages = storages or Storages()
        """Those of all parts that it is split into, too."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that it, and what it is split into, took and that somebody still holds."""
        return self._storages.nbytes

    def room(self, place: CachePlace) -> int:
        """How many entries there is room for."""
        buffer = self._buffers.get(place)
        return buffer.room if buffer else 0

    def space(
        self, place: CachePlace, use: CacheUse, shape_RL: Sequence[int], attn: Attention, dtype: torch.dtype
    ) -> Space | None:
        """Room for a call's own keys and values behind those held, for who writes them there. None where entries are not stored
        as they are computed, and where there are no others."""
        rows, count = shape_RL
        if self._upstream or not self._form.stores(dtype):
            return None
        if use.capacity > self.room(place):
            none = torch.empty((rows, attn.heads, 0, attn.head_size), dtype=dtype, device=attn.q_bias.device)
            self._grow(place, use.capacity, (none, none))
        buffer = self._buffers.get(place)
        if buffer is None:
            return None
        before = total(buffer.held)
        after, held = before + count, buffer.upto(before)
        if after <= buffer.room:
            keys, values = buffer.upto(after)
            return Space((keys, values), before)
        # What is read only now is not stored, so it has no room in the buffer: both together for this call alone.
        keys, values = (part.new_empty((*part.shape[:2], after, part.shape[3])) for part in held)
        put(held[0], keys[:, :, :before])
        put(held[1], values[:, :, :before])
        return Space((keys, values), before)

    def extend(self, place: CachePlace, use: CacheUse, keys_RHLc: Tensor, values_RHLc: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to: those held, then the call's own. Stores the own ones where they will stay."""
        if self._upstream:
            return self._concatenate(place, keys_RHLc, values_RHLc)
        if use.capacity > self.room(place):
            self._grow(place, use.capacity, self._form.stored(keys_RHLc, values_RHLc))
        buffer = self._buffers.get(place)
        if buffer is None:
            return keys_RHLc, values_RHLc
        before = total(buffer.held)
        after, held = before + keys_RHLc.shape[2], buffer.upto(before)
        if after <= buffer.room:
            for tensor, part in zip(buffer.tensors, self._form.stored(keys_RHLc, values_RHLc), strict=True):
                put(part, tensor[:, :, before:after])
            if self._form.plain:
                return self._form.read(buffer.upto(after))
            self._stored[place] = buffer.upto(after)
        elif use.kept and not self._form.plain:
            self._stored[place] = _joined(held, self._form.stored(keys_RHLc, values_RHLc))
        # What is read only now is not stored, so it has no room in the buffer: put both together for this call alone.
        return self._attended(held, keys_RHLc, values_RHLc)

    def _attended(self, held: tuple[Tensor, ...], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is stored, and the call's own as it is."""
        earlier = self._form.read(held)
        return (
            torch.cat((earlier[0].to(keys.dtype), keys), dim=2),
            torch.cat((earlier[1].to(values.dtype), values), dim=2),
        )

    def settle(
        self,
        place: CachePlace,
        use: CacheUse,
        own: tuple[Segment, ...],
        attended: tuple[Tensor, Tensor],
        picked_RHn: Tensor | None,
    ) -> int:
        """Leaves what the plan keeps: nothing, whole scales, or the entries a policy picked; of merged ones `attended` has
        no others any more. Returns how many entries were written, by their tensors."""
        stored = self._stored.pop(place, attended)
        if not use.kept:
            self._free(place)
            return 0
        buffer = self._buffers[place]
        entries = (*buffer.held, *own)
        if picked_RHn is not None:
            if use.merged:
                written = _replace(buffer, self._form.stored(*attended))
            else:
                written = _replace(buffer, tuple(_gathered(tensor, picked_RHn) for tensor in stored))
            buffer.held = (Segment(MIXED, picked_RHn.shape[-1]),)
        elif use.kept != entries:
            spans = _spans(entries, use.kept)
            written = _replace(
                buffer, tuple(torch.cat([tensor[:, :, a:b] for a, b in spans], dim=2) for tensor in stored)
            )
            buffer.held = tuple(spans.values())
        elif total(own) and stored[0].data_ptr() != buffer.tensors[0].data_ptr():
            raise AssertionError("entries that stay were given no room")
        else:
            written = stored[0].shape[2]
            buffer.held = entries
        if self._upstream:
            self._trim(place)
        return written

    def _put(self, place: CachePlace, buffer: _Buffer | None) -> None:
        """In the place of what was there, which nobody should hold after the caller has returned."""
        old = self._buffers.pop(place, None)
        if old:
            self._storages.let_go(*old.tensors)
        if buffer:
            self._buffers[place] = buffer
            self._storages.take(*buffer.tensors)

    def _grow(self, place: CachePlace, room: int, like: tuple[Tensor, ...]) -> None:
        old = self._buffers.get(place)
        tensors = tuple(part.new_empty((*part.shape[:2], room, *part.shape[3:])) for part in like)
        new = _Buffer(tensors, old.held if old else ())
        if old:
            _replace(new, old.upto(total(old.held)))
        self._put(place, new)

    def _concatenate(self, place: CachePlace, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the official code does: the cache is a new, longer tensor at every scale."""
        own, old = self._form.stored(keys, values), self._buffers.get(place)
        held = old.tensors if old else tuple(part[:, :, :0] for part in own)
        new = _Buffer(_joined(held, own), old.held if old else ())
        self._put(place, new)
        if self._form.plain:
            return self._form.read(new.tensors)
        self._stored[place] = new.tensors
        return self._attended(held, keys, values)

    def _trim(self, place: CachePlace) -> None:
        buffer = self._buffers[place]
        count = total(buffer.held)
        if count < buffer.room:
            self._put(place, _Buffer(tuple(tensor.clone() for tensor in buffer.upto(count)), buffer.held))

    def _free(self, place: CachePlace) -> None:
        self._put(place, None)

    def drop_backbone(self, backbone: str) -> None:
        for place in [place for place in self._buffers if place[0].backbone == backbone]:
            self._free(place)
        for key, name in [place for place in self._memories if place[0].backbone == backbone]:
            self.forget(key, name)

    def keep_rows(self, backbone: str, rows: int) -> None:
        """Frees what belongs to a guidance branch that has ended: rows beyond the first `rows`."""
        self.keep_attending(backbone, rows)
        for (key, name), memory in list(self._memories.items()):
            if key.backbone == backbone and memory.shape[0] > rows:
                self.remember(key, name, memory[:rows])

    def keep_read(self, needed: Needed) -> None:
        """Frees what nothing reads any more."""
        for place in [place for place in self._buffers if place[0] not in needed.slots]:
            self._free(place)
        for key, name in [memory for memory in self._memories if memory not in needed.memories]:
            self.forget(key, name)

    def split(self, parts: Sequence[StatePart], look: Callable[[], None]) -> list[State]:
        """What each part of the images still reads, in rows of its own; freed here piece by piece. `look` is called whenever
        both are there."""
        made = [State(accounting=self._accounting, form=self._form, storages=self._storages) for _ in parts]
        for place in sorted(self._buffers):
            old = self._buffers[place]
            for state, part in zip(made, parts, strict=True):
                if place[0] in part.needed.slots:
                    tensors = tuple(part.rows_of(tensor, place[0].backbone, attention=True) for tensor in old.tensors)
                    state._put(place, _Buffer(tensors, old.held))
            look()
            self._free(place)
            del old
        for key, name in sorted(self._memories):
            for state, part in zip(made, parts, strict=True):
                if (key, name) in part.needed.memories:
                    state.remember(
                        key, name, part.rows_of(self._memories[key, name], key.backbone, attention=of_attention(name))
                    )
            look()
            self.forget(key, name)
        return made

    def keep_attending(self, backbone: str, rows: int) -> None:
        """Frees what belongs to the attention of a guidance branch that takes another's from now on."""
        for place, buffer in list(self._buffers.items()):
            if place[0].backbone == backbone and buffer.tensors[0].shape[0] > rows:
                self._put(place, _Buffer(tuple(tensor[:rows].clone() for tensor in buffer.tensors), buffer.held))
        for (key, name), memory in list(self._memories.items()):
            if key.backbone == backbone and of_attention(name) and memory.shape[0] > rows:
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


def _replace(buffer: _Buffer, kept: tuple[Tensor, ...]) -> int:
    """Puts these entries at the buffer's beginning; how many they are."""
    for tensor, part in zip(buffer.tensors, kept, strict=True):
        tensor[:, :, : part.shape[2]] = part
    return kept[0].shape[2]


def _joined(earlier: tuple[Tensor, ...], later: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts, dim=2) for parts in zip(earlier, later, strict=True))


def _gathered(tensor_RHnx: Tensor, places_RHk: Tensor) -> Tensor:
    return tensor_RHnx.gather(2, places_RHk.unsqueeze(-1).expand(*places_RHk.shape, tensor_RHnx.shape[-1]))


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
