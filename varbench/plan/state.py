"""Bytes that live from one step to the next, counted from the plan: caches, remembered outputs, and the loop's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from varbench.plan.decided import Stretch, WaysTaken, is_split, stretches
from varbench.plan.steps import Plan, SlotKey, Step, total
from varbench.spec import ModelSpec

ITEM: dict[str, float] = {
    "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1, "int4": 0.5,
}  # fmt: skip
"""Bytes of one number, by type. Whole types are for weights: their scales are bytes beside."""
CACHE_TYPES = tuple(dtype for dtype in ITEM if dtype.startswith(("float", "bfloat")))


def entry_bytes(plan: Plan, spec: ModelSpec, dtype: str) -> int:
    """Bytes of a stored key and its value, of one head."""
    return sum(key_and_value_bytes(plan, spec, dtype))


def key_and_value_bytes(plan: Plan, spec: ModelSpec, dtype: str) -> tuple[int, int]:
    """Of one head."""
    if plan.cache_form is not None:
        bits, beside = plan.cache_form
        one = spec.head_dim * bits // 8 + beside
        return one, one
    item = int(ITEM[plan.cache_dtype or dtype])
    return spec.head_dim * (4 if plan.float32_keys else item), spec.head_dim * item


@dataclass
class _Held:
    """What lives of some images between steps: bytes per row, and rows by backbone."""

    images: int
    rows: dict[str, int] = field(default_factory=dict)
    attending: dict[str, int] = field(default_factory=dict)
    """Rows whose attention is computed."""
    buffers: dict[tuple[SlotKey, int], int] = field(default_factory=dict)
    memories: dict[tuple[SlotKey, str], int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        cached = sum(self.attending[key.backbone] * size for (key, _), size in self.buffers.items())
        return cached + sum(self.rows_of(memory) * size for memory, size in self.memories.items())

    def rows_of(self, memory: tuple[SlotKey, str]) -> int:
        key, name = memory
        return (self.attending if of_attention(name) else self.rows)[key.backbone]

    def of(self, stretch: Stretch, *, apart: bool) -> _Held:
        """What steps of some of the images still read of it, in rows of their own where they go apart from the others."""
        needed = read_later(stretch.steps)
        first = branches_at_first(stretch.steps).items()
        rows = {name: stretch.images * count.branches for name, count in first}
        attending = {name: stretch.images * count.attending for name, count in first}
        return _Held(
            images=stretch.images,
            rows=rows if apart else dict(self.rows),
            attending=attending if apart else dict(self.attending),
            buffers={place: size for place, size in self.buffers.items() if place[0] in needed.slots},
            memories={place: size for place, size in self.memories.items() if place in needed.memories},
        )


def state_over_time(plan: Plan, *, batch: int, dtype: str, taken: WaysTaken = ()) -> Iterator[tuple[int, int]]:
    """Peak within and bytes after each step, following every allocation in the order in which calls make them."""
    first, further = stretches(plan, batch=batch, taken=taken)
    held = _Held(images=first.images)
    yield from _through(plan, first.steps, held, dtype, fills=last_fills(plan.steps))
    apart = is_split(further)
    parts = [held.of(stretch, apart=apart) for stretch in further]
    splitting = _peak_of_split(held, parts) if apart else 0
    for number, (stretch, part) in enumerate(zip(further, parts, strict=True)):
        waiting = sum(later.nbytes for later in parts[number + 1 :])
        for peak, after in _through(plan, stretch.steps, part, dtype, fills=last_fills(stretch.steps)):
            yield max(peak + waiting, splitting), after + waiting
            splitting = 0


def _through(
    plan: Plan, steps: Sequence[Step], held: _Held, dtype: str, *, fills: dict[tuple[SlotKey, str], int]
) -> Iterator[tuple[int, int]]:
    for step in steps:
        spec = plan.backbone(step.backbone)
        held.rows[step.backbone] = held.images * step.branches
        held.attending[step.backbone] = held.images * step.attending
        rows, attending = held.rows[step.backbone], held.attending[step.backbone]
        entry, item = entry_bytes(plan, spec, dtype), int(ITEM[dtype])
        buffers, memories = held.buffers, held.memories
        peak = live = held.nbytes  # Added up once a step, and then followed.
        for call in step.calls:
            key = SlotKey(step.backbone, call.layer, call.slot)
            for group, use in enumerate(call.cache):
                during = use.attended if plan.accounting == "upstream" else use.capacity
                before, after = buffers.get((key, group), 0), use.capacity * len(use.heads) * entry
                peak = max(peak, live + attending * (max(before, during * len(use.heads) * entry) - before))
                live += attending * (after - before)
                buffers[key, group] = after
                paid = total(use.kept) * len(use.heads) * 4 if use.accumulated else 0
                live += attending * _more(memories, (key, paid_name(group)), paid)
            for name, sub, of in (("attention", call.attention, attending), ("ffn", call.ffn, rows)):
                if sub.remembered:
                    live += of * _more(memories, (key, name), plan.model.tokens[step.samples] * spec.width * item)
                elif fills.get((key, name), -1) <= step.samples:
                    live += of * _more(memories, (key, name), 0)
                if sub.noted:
                    live += of * _more(memories, (key, noted_name(name)), sub.noted * item)
                elif fills.get((key, name), -1) <= step.samples:
                    live += of * _more(memories, (key, noted_name(name)), 0)
                peak = max(peak, live)
        if step.drops_backbone:
            held.buffers = {place: size for place, size in buffers.items() if place[0].backbone != step.backbone}
            held.memories = {place: size for place, size in memories.items() if place[0].backbone != step.backbone}
            live = held.nbytes
        yield peak, live


def _more(sizes: dict[tuple[SlotKey, str], int], name: tuple[SlotKey, str], size: int) -> int:
    """Remembers that many bytes a row under the name, or nothing; by how many that is more than before."""
    before = sizes.pop(name, 0)
    if size:
        sizes[name] = size
    return size - before


def _peak_of_split(held: _Held, parts: Sequence[_Held]) -> int:
    """When images go apart, what each part reads is copied and freed for all together, piece by piece."""
    live, peak = held.nbytes, 0
    pieces = [
        (held.attending[place[0].backbone] * size, sum(_copied(part, place) for part in parts))
        for place, size in sorted(held.buffers.items())
    ]
    pieces += [
        (held.rows_of(memory) * size, sum(part.rows_of(memory) * size for part in parts if memory in part.memories))
        for memory, size in sorted(held.memories.items())
    ]
    for freed, copied in pieces:
        peak = max(peak, live + copied)
        live += copied - freed
    return peak


def _copied(part: _Held, place: tuple[SlotKey, int]) -> int:
    return part.attending[place[0].backbone] * part.buffers[place] if place in part.buffers else 0


@dataclass(frozen=True)
class Needed:
    """What steps read of what earlier ones left."""

    slots: frozenset[SlotKey]
    memories: frozenset[tuple[SlotKey, str]]


def read_later(steps: Sequence[Step]) -> Needed:
    """Caches of slots that run again, outputs that are filled in from, what is noted for it, and attention that adds up further."""
    calls = [(SlotKey(step.backbone, call.layer, call.slot), call) for step in steps for call in step.calls]
    memories = {
        (key, memory)
        for key, call in calls
        for name, sub in (("attention", call.attention), ("ffn", call.ffn))
        if sub.picked
        for memory in (name, noted_name(name))
    }
    memories |= {(key, paid_name(group)) for key, call in calls for group, use in enumerate(call.cache) if use.observed}
    return Needed(slots=frozenset(key for key, call in calls if call.cache), memories=frozenset(memories))


class Branches(NamedTuple):
    """Of guidance: those that run, and those whose attention is computed."""

    branches: int
    attending: int


def branches_at_first(steps: Sequence[Step]) -> dict[str, Branches]:
    """By backbone, those of the first of these steps that runs it."""
    found: dict[str, Branches] = {}
    for step in steps:
        found.setdefault(step.backbone, Branches(step.branches, step.attending))
    return found


def of_attention(name: str) -> bool:
    """Whether what is remembered under this name has a row for each branch whose attention is computed."""
    return not name.startswith("ffn")


def noted_name(sublayer: str) -> str:
    """What a token policy notes at a sub-layer is remembered under."""
    return f"{sublayer}, noted"


def paid_name(group: int) -> str:
    """What the attention that was added up for a group's entries is remembered under."""
    return f"attention paid, group {group}"


def last_fills(steps: Sequence[Step]) -> dict[tuple[SlotKey, str], int]:
    """The last scale at which each slot's sub-layer fills in from what it remembers."""
    last: dict[tuple[SlotKey, str], int] = {}
    for step in steps:
        for call in step.calls:
            key = SlotKey(step.backbone, call.layer, call.slot)
            for name, sub in (("attention", call.attention), ("ffn", call.ffn)):
                if sub.picked:
                    last[key, name] = step.samples
    return last


def beside_state(plan: Plan, *, batch: int, dtype: str, taken: WaysTaken = ()) -> Iterator[int]:
    """Bytes that the loop needs after each step beside the state: the labels' vectors and the biases of every layer,
    the map and the codes so far, the features of scales that a later step encodes again, previews that a decision waits for, and where
    images have gone apart, which went where."""
    first, further = stretches(plan, batch=batch, taken=taken)
    # Codes so far, labels and numbers of the images are whole numbers of eight bytes.
    always = batch * (4 * plan.model.tokenizer.code_dim * plan.model.tokens[-1] + 8 * (plan.model.length + 2))
    conditioning: dict[str, int] = {}
    for number, step in enumerate(first.steps):
        conditioning[step.backbone] = batch * step.branches * _conditioning(plan, step.backbone, dtype)
        if step.drops_backbone:
            del conditioning[step.backbone]
        drawn = {before.samples for before in plan.steps[: number + 1]}
        again = drawn & {scale for later in plan.steps[number + 1 :] for scale in later.scales if scale}
        features = 4 * plan.model.tokenizer.code_dim * sum(plan.model.tokens[scale] for scale in again)
        biases = sum(_biases(plan, name, dtype) for name in conditioning)
        yield sum(conditioning.values()) + biases + always + batch * (features + _previews(plan, number))
    apart = is_split(further)
    parts = [
        {
            name: stretch.images * count.branches * _conditioning(plan, name, dtype)
            for name, count in branches_at_first(stretch.steps).items()
        }
        for stretch in further
    ]
    for number, stretch in enumerate(further):
        waiting = sum(sum(later.values()) for later in parts[number + 1 :])
        own = parts[number] if apart else {name: conditioning[name] for name in parts[number]}
        for step in stretch.steps:
            own[step.backbone] = stretch.images * step.branches * _conditioning(plan, step.backbone, dtype)
            if step.drops_backbone:
                del own[step.backbone]
            # Places and labels of all images, and numbers of those that run.
            held = own.keys() | {name for later in parts[number + 1 :] for name in later}
            biases = sum(_biases(plan, name, dtype) for name in held)
            yield sum(own.values()) + waiting + biases + always + (8 * (2 * batch + stretch.images) if apart else 0)


def _previews(plan: Plan, number: int) -> int:
    """Bytes for each image of what was decoded by the end of a step and is not decided by yet."""
    decision = plan.decision
    if decision is None or number >= decision.after:
        return 0
    drawn = {step.samples for step in plan.steps[: number + 1]}
    return sum(4 * 3 * (side * plan.model.tokenizer.stride) ** 2 for scale, side in decision.previews if scale in drawn)


def _conditioning(plan: Plan, backbone: str, dtype: str) -> int:
    """Bytes per row: six vectors a layer, of which the two gates have the compute type unless layers share their network and
    the others are float32, and two of the head."""
    spec = plan.backbone(backbone)
    item = int(ITEM[dtype])
    six = 2 * (4 if spec.shared_adaln else item) + 4 * 4
    return spec.width * (len(_layers(plan, backbone)) * six + 2 * item)


def _biases(plan: Plan, backbone: str, dtype: str) -> int:
    """Bytes, whatever the batch, of the biases of queries, keys and values."""
    return 3 * plan.backbone(backbone).width * len(_layers(plan, backbone)) * int(ITEM[dtype])


def _layers(plan: Plan, backbone: str) -> set[int]:
    return {call.layer for step in plan.steps if step.backbone == backbone for call in step.calls}
