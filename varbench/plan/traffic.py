"""Bytes that a step moves, pass by pass as the engine makes them, and the largest that it holds meanwhile.

On a CPU as our kernels make them, which are compiled where it computes; without a compiler there are more.
"""

from __future__ import annotations

from varbench.plan.sizes import matrix_bytes
from varbench.plan.state import ITEM, key_and_value_bytes
from varbench.plan.steps import CacheUse, Plan, Step, SubLayer, total
from varbench.spec import ModelSpec


def traffic(
    plan: Plan, spec: ModelSpec, step: Step, batch: int, dtype: str, device: str, *, filtered: bool = True
) -> tuple[int, int, int]:
    """Bytes moved in a step, the largest transient of its layers, and that after them, when its state is what stays; `filtered` where
    codes are drawn by top-k or top-p."""
    item, width = int(ITEM[dtype]), spec.width
    rows, attending, on_cpu = batch * step.branches, batch * step.attending, device == "cpu"
    moved, transient = 0.0, 0
    weights, ffn_weights = (
        matrix_bytes(plan, step.backbone, part, dtype) / spec.depth for part in ("attention", "ffn")
    )
    routers = plan.own.trained * ITEM[dtype] / spec.depth if plan.own else 0
    if on_cpu:
        # What was given and the stream, which gets it, and what is normed of that, all in one.
        passes = item + 2 * 4 + item
        # q k v from that, q and k of unit length, then mixed and projected.
        projected = (4 + (4 if spec.l2_attention else 0) + 2 + 2) * item
    else:
        cast = item + 4 if item != 4 else 0
        # The stream to float32, normalised, scaled and shifted there, and back; a gate, and the addition to the stream.
        passes = 2 * cast + 3 * 8 + 2 * item + 3 * item
        # q k v from the stream, then mixed, laid out anew and projected. Lengths of q and k are had and applied in float32.
        projected = (4 + 2 + 2 + 2) * item + ((2 * cast + 3 * 8 + 2 * cast) if spec.l2_attention else 0)
    # In float32 on a CPU GELU is part of the product before it.
    hidden_passes = 2 if on_cpu and item == 4 else 4
    for call in step.calls:
        attended = max((use.attended for use in call.cache), default=0)
        a, f = attending * call.attention.tokens * width, rows * call.ffn.tokens * width
        read, hidden, gathered = _ffn_part(call.ffn, spec, rows)
        moved += (
            (weights if a else 0)
            + read * ffn_weights
            + (a + f) * passes
            + a * projected
            + (2 * f + hidden_passes * hidden) * item
        )
        moved += (rows - attending) * call.attention.tokens * width * 6 * item  # a copy, gated and added for itself
        moved += attending * sum(len(use.heads) * _cache_bytes(plan, use, spec, dtype) for use in call.cache)
        # What is noted is written, and read when tokens are picked by it.
        moved += (attending * call.attention.noted + rows * call.ffn.noted) * 2 * item
        choosing = [attending * len(use.heads) * _choosing(use, spec, item) for use in call.cache]
        moved += 3 * sum(choosing)
        # Each expert's tokens are gathered, and what it makes of them is added up in float32.
        moved += gathered * width * (2 * item + 3 * 4) + (routers if gathered else 0)
        # What is normed, q k v, q of unit length or what it mixes, and keys and values with those held, where own ones go at once.
        own = 5 * item if on_cpu else 4 + 4 + 3 * item + 8
        attention = a * own + 2 * attending * attended * width * item
        together = hidden / call.ffn.width.chosen if gathered and call.ffn.width else hidden
        if on_cpu and not gathered:
            inner = f * 2 * item + round(together) * item
        else:
            inner = f * (4 + 4 + item + (4 if gathered else 0)) + round(together) * 2 * item
        transient = max(transient, round(attention), round(inner), *choosing)
    logits = rows * plan.model.tokens[step.samples] * plan.model.tokenizer.vocabulary
    # Logits in the compute type and in float32, guidance, two filters with a sort, softmax, sum, search.
    moved += round(logits * (2 * item + 8)) + logits // step.branches * 4 * 20
    # The stream stays meanwhile. Float32 logits are not copied.
    stream = rows * plan.model.tokens[step.samples] * width * (4 if on_cpu else item)
    made, drawn = stream + logits * (4 if item == 4 else item + 4), logits // step.branches * 4
    if not on_cpu:
        return round(moved), transient, made + 5 * drawn
    # Also beside a layer; and what labels make of every layer, two vectors in the compute type and four in float32. Guided
    # logits alone are left when codes are drawn, by softmax and sums; filters sort, and mask.
    conditioning = spec.depth * rows * width * (2 * item + 4 * 4)
    after = max(made, round((6.25 if filtered else 3) * drawn))
    return round(moved), conditioning + stream + transient, conditioning + after


def _cache_bytes(plan: Plan, use: CacheUse, spec: ModelSpec, dtype: str) -> int:
    """Moved for each head: what is put in its place, then what is attended to."""
    item, moved = int(ITEM[dtype]) * spec.head_dim, 0
    for stored in key_and_value_bytes(plan, spec, dtype):
        if plan.accounting == "upstream":
            moved += (use.attended + total(use.read)) * stored + use.own * item  # as a new, longer tensor
        elif plan.cache_form is None and use.capacity >= use.attended:
            moved += use.own * (item + stored)
        elif use.read:
            moved += total(use.read) * stored + use.attended * item + use.own * item  # put together for this call alone
            stored = item
        # Attention wants all in the compute type.
        moved += use.attended * (stored if stored == item else stored + 2 * item)
    return moved


def _choosing(use: CacheUse, spec: ModelSpec, item: int) -> int:
    """Bytes of a head's that choosing and merging make: attention in two types, likeness of keys and weights, and keys and
    values in float32. Keys are read once more for each."""
    attention = use.attended * (len(use.observed) * (item + 4) + spec.head_dim * item) if use.observed else 0
    merging = use.attended * (total(use.kept) * 8 + spec.head_dim * 8) if use.merged else 0
    return attention + merging


def _ffn_part(ffn: SubLayer, spec: ModelSpec, rows: int) -> tuple[float, int, int]:
    """Share of an FFN's weights that is read, hidden numbers that are made, and tokens that experts gather, each by each."""
    tokens = rows * ffn.tokens
    if ffn.width is None:
        return float(tokens > 0), tokens * spec.hidden, 0
    tokens = tokens if ffn.width.tokens is None else rows * ffn.width.tokens
    chosen, experts = ffn.width.chosen, ffn.width.experts
    made = tokens * spec.hidden // experts * chosen
    if not ffn.width.routed:
        return chosen / experts, made, 0 if ffn.width.tokens is None else tokens
    return min(1.0, tokens * chosen / experts), made, tokens * chosen
