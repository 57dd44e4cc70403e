"""What a plan costs: FLOPs, bytes and state over time, counted from the plan; and a roofline's prediction. No torch.

FLOPs are those of matrix products, convolutions and attention, two per multiply-add, as torch's own counter has them.
Bytes moved are what eager code moves: weights and caches once a call, element-wise passes one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from varbench.plan.hardware import Hardware
from varbench.plan.state import ITEM, key_value_bytes
from varbench.plan.steps import CacheUse, Plan, Step, SubLayer, total
from varbench.plan.trace import CallSeen, StepSeen, foreseen
from varbench.policies import MAIN, Part
from varbench.spec import ModelSpec, TokenizerSpec


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Work of one step for a whole batch."""

    scale: int
    block_flops: int
    other_flops: int
    """Embedding, head and the quantiser's convolution; conditioning in the first step of a backbone."""
    other_types: tuple[tuple[str, int], ...]
    """FLOPs among these that a transform computes in other types than the compute type, by type."""
    bytes_moved: int
    state_peak: int
    """Largest bytes of caches and remembered outputs within the step."""
    state_after: int
    """Bytes that stay after the step; those still held at the very end are freed with the generation."""
    activations: int
    """Largest transient bytes of a sub-layer or of sampling: an estimate, not a promise."""

    @property
    def flops(self) -> int:
        return self.block_flops + self.other_flops


@dataclass(frozen=True, kw_only=True)
class PlanWork:
    """Work of one generation."""

    steps: tuple[StepWork, ...]
    decoder_flops: int
    decoder_bytes: int
    weight_bytes: int
    """All models that are loaded, and the tokenizer."""
    batch: int
    dtype: str

    @cached_property
    def transformer_flops(self) -> int:
        return sum(step.flops for step in self.steps)

    @cached_property
    def block_flops(self) -> int:
        return sum(step.block_flops for step in self.steps)

    @property
    def flops(self) -> int:
        return self.transformer_flops + self.decoder_flops

    @property
    def state_peak(self) -> int:
        return max(step.state_peak for step in self.steps)

    @property
    def state_end(self) -> int:
        """Bytes held while the last step runs. After it nothing is read again, so lossless accounting holds nothing."""
        return self.steps[-1].state_peak


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds by the roofline: for each step the larger of bytes/bandwidth and FLOPs/rate, over one efficiency."""

    hardware: str
    efficiency: float
    steps: tuple[float, ...]
    decoder: float

    @property
    def transformer(self) -> float:
        return sum(self.steps)

    @property
    def total(self) -> float:
        return self.transformer + self.decoder


def work(plan: Plan, *, batch: int, dtype: str) -> PlanWork:
    """Counts a plan's work for a batch of images in a compute type."""
    seen = foreseen(plan, batch=batch, dtype=dtype).steps
    steps = []
    for step, known, counted in zip(plan.steps, seen, flops_of(seen, plan, batch=batch), strict=True):
        moved, transient = _bytes(plan, plan.backbone(step.backbone), step, batch, dtype)
        steps.append(
            StepWork(
                scale=step.samples,
                block_flops=counted.blocks,
                other_flops=counted.others,
                other_types=_other_types(plan, step.backbone, counted.products, dtype),
                bytes_moved=moved,
                state_peak=known.state_peak,
                state_after=known.state_after,
                activations=transient,
            )
        )
    flops, moved = _decoder(plan.model.tokenizer, plan.model.sides[-1], batch)
    return PlanWork(
        steps=tuple(steps),
        decoder_flops=flops,
        decoder_bytes=moved,
        weight_bytes=weight_bytes(plan, dtype),
        batch=batch,
        dtype=dtype,
    )


def predict(counted: PlanWork, hardware: Hardware) -> Prediction:
    rate, bandwidth = hardware.rate(counted.dtype), hardware.bandwidth_gbs * 1e9
    efficiency = hardware.reached(counted.dtype)

    def seconds(flops: int, moved: int, others: tuple[tuple[str, int], ...] = ()) -> float:
        # A type that the device has no rate for is no faster on it than the compute type.
        other = sum(amount / (hardware.rate(kind) if kind in hardware.tflops else rate) for kind, amount in others)
        own = (flops - sum(amount for _, amount in others)) / rate
        return max(own + other, moved / bandwidth) / efficiency

    return Prediction(
        hardware=hardware.name,
        efficiency=efficiency,
        steps=tuple(seconds(step.flops, step.bytes_moved, step.other_types) for step in counted.steps),
        decoder=seconds(counted.decoder_flops, counted.decoder_bytes),
    )


class StepFlops(NamedTuple):
    attention: int
    """Queries with keys, and weights with values."""
    products: dict[Part, int]
    """Products with matrices, by part, as transforms leave them."""
    phi: int
    """The quantiser's convolution."""
    choosing: int
    """Choosing parts of FFNs and estimating the rest, as the plugin declares it."""

    @property
    def blocks(self) -> int:
        return self.attention + self.products["attention"] + self.products["ffn"] + self.choosing

    @property
    def others(self) -> int:
        return self.phi + self.products["conditioning"] + self.products["ends"]


def flops_of(steps: Sequence[StepSeen], plan: Plan, *, batch: int) -> Iterator[StepFlops]:
    """FLOPs of steps that were seen, or foreseen. Of the plan only sizes are asked, and what its transforms declare."""
    layers: dict[str, set[int]] = {}
    for call in (call for step in steps for call in step.calls):
        layers.setdefault(call.backbone, set()).add(call.layer)
    for step in steps:
        backbone = step.calls[0].backbone
        spec = plan.backbone(backbone)
        # AdaLN vectors are made in a backbone's first step.
        products = _product_flops(plan.model, spec, step, batch, vectors_of=len(layers.pop(backbone, ())))
        yield StepFlops(
            attention=step.rows * sum(_attention_flops(spec, call) for call in step.calls),
            products={part: round(flops * plan.change(backbone, part).flops) for part, flops in products.items()},
            phi=2 * batch * plan.model.tokens[-1] * plan.model.tokenizer.code_dim**2 * 9,
            choosing=sum(_choosing(plan, step, call) for call in step.calls),
        )


def _choosing(plan: Plan, step: StepSeen, call: CallSeen) -> int:
    if plan.choosing is None:
        return 0
    gated = step.rows * call.ffn if call.estimated else 0
    return (
        plan.choosing.routing * call.routed + plan.choosing.gating * gated + plan.choosing.estimating * call.estimated
    )


def _attention_flops(spec: ModelSpec, call: CallSeen) -> int:
    return sum(4 * call.attention * (use.read + use.own) * use.heads * spec.head_dim for use in call.caches)


def _product_flops(
    model: ModelSpec, spec: ModelSpec, step: StepSeen, batch: int, *, vectors_of: int
) -> dict[Part, int]:
    """With the AdaLN vectors of so many layers: a row an image, and one for "no class"."""
    width, rows, tokenizer = spec.width, step.rows, model.tokenizer
    vectors = batch + (1 if rows > batch else 0)
    sixes = 1 if spec.shared_adaln else vectors_of
    return {
        "attention": sum(rows * 2 * call.attention * width * 4 * width for call in step.calls),
        "ffn": sum(4 * call.hidden * width for call in step.calls),
        "conditioning": 2 * vectors * width * width * (6 * sixes + 2) if vectors_of else 0,
        "ends": 2 * batch * step.embedded * tokenizer.code_dim * width
        + 2 * rows * step.drawn * width * tokenizer.vocabulary,
    }


def _other_types(plan: Plan, backbone: str, products: dict[Part, int], dtype: str) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for part, flops in products.items():
        kind = plan.change(backbone, part).compute_type
        if kind is not None and kind != dtype:
            found[kind] = found.get(kind, 0) + flops
    return tuple(found.items())


def matrices(spec: ModelSpec) -> dict[Part, tuple[int, int]]:
    """Numbers in the matrices of each part, and in their biases."""
    width, hidden, depth, tokenizer = spec.width, spec.hidden, spec.depth, spec.tokenizer
    sixes = 1 if spec.shared_adaln else depth
    return {
        "attention": (depth * 4 * width * width, depth * width),
        "ffn": (depth * 2 * width * hidden, depth * (hidden + width)),
        "conditioning": ((6 * sixes + 2) * width * width, (6 * sixes + 2) * width),
        "ends": ((tokenizer.code_dim + tokenizer.vocabulary) * width, width + tokenizer.vocabulary),
    }


def parameters(spec: ModelSpec) -> dict[str, int]:
    """Numbers stored by a transformer, by how they are stored: `matrices` in the compute type, the rest in float32."""
    layer = 2 * spec.width + (6 * spec.width if spec.shared_adaln else 0) + (spec.heads if spec.l2_attention else 0)
    embeddings = (spec.classes + 1 + spec.scales + spec.length + spec.tokens[0]) * spec.width
    return {"matrices": sum(map(sum, matrices(spec).values())), "others": spec.depth * layer + embeddings}


def weight_bytes(plan: Plan, dtype: str) -> int:
    """Bytes of every transformer that the row runs on, and of the tokenizer in float32."""
    tokenizer = 4 * tokenizer_parameters(plan.model.tokenizer, plan.model.scales)
    return tokenizer + sum(backbone_bytes(plan, name, dtype) for name, _ in plan.backbones)


def backbone_bytes(plan: Plan, name: str, dtype: str) -> int:
    """Bytes of one transformer as transforms leave it."""
    spec = plan.backbone(name)
    bytes_ = 4.0 * parameters(spec)["others"]
    for part, (_, biases) in matrices(spec).items():
        bytes_ += _matrix_bytes(plan, name, part, dtype) + biases * ITEM[plan.change(name, part).bias_type or dtype]
    if name == MAIN and plan.own is not None:
        bytes_ += plan.own.trained * ITEM[dtype] + plan.own.whole * 8
    return round(bytes_)


def _matrix_bytes(plan: Plan, name: str, part: Part, dtype: str) -> float:
    """Of all layers, with what is stored beside."""
    change = plan.change(name, part)
    numbers, _ = matrices(plan.backbone(name))[part]
    return change.weights * numbers * ITEM[change.weight_type or dtype] + change.extra_bytes


def _bytes(plan: Plan, spec: ModelSpec, step: Step, batch: int, dtype: str) -> tuple[int, int]:
    """Bytes moved in a step by eager code, and the largest transient."""
    item, width = int(ITEM[dtype]), spec.width
    rows = batch * step.branches
    moved, transient = 0.0, 0
    weights, ffn_weights = (
        _matrix_bytes(plan, step.backbone, part, dtype) / spec.depth for part in ("attention", "ffn")
    )
    routers = plan.own.trained * ITEM[dtype] / spec.depth if plan.own else 0
    for call in step.calls:
        attended = max(use.attended for use in call.cache)
        a, f = rows * call.attention.tokens * width, rows * call.ffn.tokens * width
        # Normalise and modulate in float32 (three passes that read and write), cast, gate, add to the stream.
        passes = 3 * 8 + 4 + item + 3 * item + 4 + item + 4
        read, hidden, gathered = _ffn_part(call.ffn, spec, rows)
        moved += weights + read * ffn_weights + (a + f) * passes
        # q k v written, q and k normalised in float32, then what is attended to, mixed, projected.
        moved += a * (8 * item + 2 * 12) + rows * sum(
            use.attended * len(use.heads) * spec.head_dim * sum(key_value_bytes(plan, dtype)) for use in call.cache
        )
        moved += sum(_workspace(use, spec, rows, item) for use in call.cache) * 2
        moved += a * 4 * item + f * 2 * item + hidden * 4 * item
        # Each expert's tokens are gathered, and what it makes of them is added up in float32.
        moved += gathered * width * (2 * item + 3 * 4) + (routers if gathered else 0)
        attention = a * (4 + 4 + 3 * item + 8) + 2 * rows * attended * width * item
        together = hidden / call.ffn.width.chosen if gathered and call.ffn.width else hidden
        inner = f * (4 + 4 + item + (4 if gathered else 0)) + round(together) * 2 * item
        transient = max(transient, round(attention), round(inner))
    logits = rows * plan.model.tokens[step.samples] * plan.model.tokenizer.vocabulary
    # Logits in the compute type and in float32, guidance, two filters with a sort, softmax, sum, search.
    moved += round(logits * (2 * item + 8)) + logits // step.branches * 4 * 20
    # The stream stays meanwhile. Float32 logits are not copied.
    stream = rows * plan.model.tokens[step.samples] * width * item
    transient = max(transient, stream + logits * (4 if item == 4 else item + 4) + logits // step.branches * 4 * 5)
    return round(moved), transient


def _ffn_part(ffn: SubLayer, spec: ModelSpec, rows: int) -> tuple[float, int, int]:
    """Share of an FFN's weights that is read, hidden numbers that are made, and tokens that experts gather, each by each."""
    tokens = rows * ffn.tokens
    if ffn.width is None:
        return 1.0, tokens * spec.hidden, 0
    tokens = tokens if ffn.width.tokens is None else rows * ffn.width.tokens
    chosen, experts = ffn.width.chosen, ffn.width.experts
    made = tokens * spec.hidden // experts * chosen
    if not ffn.width.routed:
        return chosen / experts, made, 0 if ffn.width.tokens is None else tokens
    return min(1.0, tokens * chosen / experts), made, tokens * chosen


def _workspace(use: CacheUse, spec: ModelSpec, rows: int, item: int) -> int:
    """Bytes put together for one call, where what is read is not all stored."""
    if use.capacity >= use.attended or not total(use.read):
        return 0
    return rows * use.attended * len(use.heads) * spec.head_dim * item * 2


def _convolutions(spec: TokenizerSpec, side: int) -> Iterator[tuple[int, int, int, int]]:
    """The decoder's convolutions as (inputs, outputs, kernel, side), attention's products aside."""
    widths = [spec.channels * m for m in spec.multipliers]
    deepest = len(widths) - 1
    yield spec.code_dim, spec.code_dim, 3, side
    yield spec.code_dim, widths[-1], 3, side
    for _ in range(2):
        yield from _residual(widths[-1], widths[-1], side)
    yield from _attention_convolutions(widths[-1], side)
    before = widths[-1]
    for level in range(deepest, -1, -1):
        for _ in range(spec.blocks + 1):
            yield from _residual(before, widths[level], side)
            before = widths[level]
            if level == deepest:
                yield from _attention_convolutions(before, side)
        if level:
            side *= 2
            yield before, before, 3, side
    yield before, 3, 3, side


def _residual(before: int, after: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    yield before, after, 3, side
    yield after, after, 3, side
    if before != after:
        yield before, after, 1, side


def _attention_convolutions(channels: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    yield channels, 3 * channels, 1, side
    yield channels, channels, 1, side


def _decoder(spec: TokenizerSpec, side: int, batch: int) -> tuple[int, int]:
    """FLOPs and bytes moved by decoding."""
    flops, moved = 0, 0
    for inputs, outputs, kernel, at in _convolutions(spec, side):
        flops += 2 * inputs * outputs * kernel**2 * at * at
        # The convolution, and the norm and activation before it.
        moved += (inputs * 5 + outputs) * at * at * 4
    places = side * side
    channels = spec.channels * spec.multipliers[-1]
    attentions = spec.blocks + 2
    flops += attentions * 4 * places * places * channels
    return batch * flops, batch * moved


def tokenizer_parameters(spec: TokenizerSpec, scales: int) -> int:
    """Numbers stored by encoder, decoder, codebook and phis, and the usage counts of the official files."""
    widths = [spec.channels * m for m in spec.multipliers]
    deepest = len(widths) - 1

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return (inputs * kernel**2 + 1) * outputs

    def residual(before: int, after: int) -> int:
        shortcut = conv(before, after, 1) if before != after else 0
        return 2 * before + 2 * after + conv(before, after) + conv(after, after) + shortcut

    def attention(channels: int) -> int:
        return 2 * channels + conv(channels, 3 * channels, 1) + conv(channels, channels, 1)

    middle = 2 * residual(widths[-1], widths[-1]) + attention(widths[-1])
    encoder = conv(3, spec.channels) + middle + 2 * widths[-1] + conv(widths[-1], spec.code_dim)
    before = spec.channels
    for level, width in enumerate(widths):
        for _ in range(spec.blocks):
            encoder += residual(before, width) + (attention(width) if level == deepest else 0)
            before = width
        encoder += conv(width, width) if level != deepest else 0
    decoder = conv(spec.code_dim, widths[-1]) + middle + 2 * widths[0] + conv(widths[0], 3)
    before = widths[-1]
    for level in range(deepest, -1, -1):
        for _ in range(spec.blocks + 1):
            decoder += residual(before, widths[level]) + (attention(widths[level]) if level == deepest else 0)
            before = widths[level]
        decoder += conv(before, before) if level else 0
    code = spec.code_dim
    return encoder + decoder + (2 + spec.phis) * conv(code, code) + spec.vocabulary * (code + scales)
