"""Bytes that live from one step to the next, counted from the plan: caches, remembered outputs, and the loop's own."""

from __future__ import annotations

from collections.abc import Iterator

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


def state_over_time(plan: Plan, *, batch: int, dtype: str) -> Iterator[tuple[int, int]]:
    """Peak within and bytes after each step, following every allocation in the order in which calls make them."""
    buffers: dict[tuple[SlotKey, int], int] = {}
    """Bytes per row."""
    memories: dict[tuple[SlotKey, str], int] = {}
    rows: dict[str, int] = {}
    fills = last_fills(plan)
    for step in plan.steps:
        spec = plan.backbone(step.backbone)
        rows[step.backbone] = batch * step.branches
        entry = entry_bytes(plan, spec, dtype)

        peak = _held(rows, buffers, memories)
        for call in step.calls:
            key = SlotKey(step.backbone, call.layer, call.slot)
            for group, use in enumerate(call.cache):
                during = use.attended if plan.accounting == "upstream" else use.capacity
                before = buffers.get((key, group), 0)
                buffers[key, group] = max(before, during * len(use.heads) * entry)
                peak = max(peak, _held(rows, buffers, memories))
                buffers[key, group] = use.capacity * len(use.heads) * entry
                if use.accumulated:
                    memories[key, paid_name(group)] = total(use.kept) * len(use.heads) * 4
                else:
                    memories.pop((key, paid_name(group)), None)
            for name, sub in (("attention", call.attention), ("ffn", call.ffn)):
                if sub.remembered:
                    memories[key, name] = plan.model.tokens[step.samples] * spec.width * int(ITEM[dtype])
                elif fills.get((key, name), -1) <= step.samples:
                    memories.pop((key, name), None)
                peak = max(peak, _held(rows, buffers, memories))
        if step.drops_backbone:
            buffers = {place: size for place, size in buffers.items() if place[0].backbone != step.backbone}
            memories = {place: size for place, size in memories.items() if place[0].backbone != step.backbone}
        yield peak, _held(rows, buffers, memories)


def paid_name(group: int) -> str:
    """What the attention that was added up for a group's entries is remembered under."""
    return f"attention paid, group {group}"


def _held(
    rows: dict[str, int], buffers: dict[tuple[SlotKey, int], int], memories: dict[tuple[SlotKey, str], int]
) -> int:
    cached = sum(rows[key.backbone] * size for (key, _), size in buffers.items())
    return cached + sum(rows[key.backbone] * size for (key, _), size in memories.items())


def last_fills(plan: Plan) -> dict[tuple[SlotKey, str], int]:
    """The last scale at which each slot's sub-layer fills in from what it remembers."""
    last: dict[tuple[SlotKey, str], int] = {}
    for step in plan.steps:
        for call in step.calls:
            key = SlotKey(step.backbone, call.layer, call.slot)
            for name, sub in (("attention", call.attention), ("ffn", call.ffn)):
                if sub.picked:
                    last[key, name] = step.samples
    return last


def beside_state(plan: Plan, *, batch: int, dtype: str) -> Iterator[int]:
    """Bytes that the loop needs after each step beside the state: the labels' vectors of every layer, the map and the
    codes so far, and the features of scales that a later step encodes again."""
    conditioning: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        conditioning[step.backbone] = batch * step.branches * _conditioning(plan, step, dtype)
        if step.drops_backbone:
            del conditioning[step.backbone]
        drawn = {before.samples for before in plan.steps[: number + 1]}
        again = drawn & {scale for later in plan.steps[number + 1 :] for scale in later.scales if scale}
        places = plan.model.tokens[-1] + sum(plan.model.tokens[scale] for scale in again)
        running = 4 * plan.model.tokenizer.code_dim * places
        # Codes so far, labels and numbers of the images are whole numbers of eight bytes.
        yield sum(conditioning.values()) + batch * (running + 8 * (plan.model.length + 2))


def _conditioning(plan: Plan, step: Step, dtype: str) -> int:
    """Bytes per row: six vectors a layer, of which the two gates have the compute type unless layers share their network and
    the others are float32, and two of the head."""
    spec = plan.backbone(step.backbone)
    layers = {call.layer for other in plan.steps if other.backbone == step.backbone for call in other.calls}
    item = int(ITEM[dtype])
    six = 2 * (4 if spec.shared_adaln else item) + 4 * 4
    return spec.width * (len(layers) * six + 2 * item)
