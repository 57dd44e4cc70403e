"""What a plan costs: FLOPs, bytes and state over time, counted from the plan; and a roofline's prediction. No torch.

FLOPs are those of matrix products, convolutions and attention, two per multiply-add, as torch's own counter has them.
Bytes moved are what the engine moves: weights once a call, element-wise passes one by one, caches as its accounting
stores and reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from varbench.plan.decided import WaysTaken, alone, stretches
from varbench.plan.hardware import Hardware
from varbench.plan.sizes import (
    convolutions,
    decoder_type,
    weight_bytes,
)
from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.plan.trace import CacheSeen, CallSeen, StepSeen, foreseen
from varbench.plan.traffic import traffic
from varbench.plan.widths import at_least
from varbench.policies import Part
from varbench.spec import ModelSpec, TokenizerSpec

OPERATORS_OF_HALF = {"cpu": 6, "cuda": 5}
"""Operators of a layer's attention or FFN that touch memory, as our kernels leave them: counted on a CPU."""
OPERATORS_OF_STEP = {"cpu": 110, "cuda": 40}
"""Those of a step beside its layers: embedding, head, drawing, quantiser, and a share of conditioning."""


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Work of one step for a whole batch."""

    scale: int
    block_flops: int
    other_flops: int
    """Embedding, head and the quantiser's convolution; conditioning in the first step of a backbone; previews to decide by."""
    other_types: tuple[tuple[str, int], ...]
    """FLOPs among these that a transform computes in other types than the compute type, by type."""
    bytes_moved: int
    state_peak: int
    """Largest bytes of caches and remembered outputs within the step."""
    state_after: int
    """Bytes that stay after the step; those still held at the very end are freed with the generation."""
    activations: int
    """Largest transient bytes of a sub-layer or of sampling: an estimate, not a promise."""
    operators: int
    """That the engine starts, more or less: where they are small, their number is what takes time."""

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
    """Seconds by the roofline: for each step the larger of bytes/bandwidth and FLOPs/rate, over one efficiency; and what its
    operators take at least, where that is known of a device."""

    hardware: str
    efficiency: float
    bound: bool
    """Nobody measured what the device reaches."""
    steps: tuple[float, ...]
    decoder: float

    @property
    def transformer(self) -> float:
        return sum(self.steps)

    @property
    def total(self) -> float:
        return self.transformer + self.decoder


def work(
    plan: Plan, *, batch: int, dtype: str, device: str = "cuda", taken: WaysTaken = (), filtered: bool = True
) -> PlanWork:
    """Counts a plan's work for a batch of images in a compute type; `device` is "cpu", or "cuda" with or without a number.
    Codes are drawn by top-k or top-p if `filtered`, which takes memory.

    Where it depends on content, of images that go these ways: without a word of it, all go the first, which is the most.
    """
    seen = foreseen(plan, batch=batch, dtype=dtype, taken=taken).steps
    first, further = stretches(plan, batch=batch, taken=taken)
    ran = [step for stretch in (first, *further) for step in stretch.steps]
    tokenizer, decoder_item = plan.model.tokenizer, int(ITEM[decoder_type(dtype, device)])
    steps = []
    for step, known, counted in zip(ran, seen, flops_of(seen, plan), strict=True):
        spec = plan.backbone(step.backbone)
        moved, within, after = traffic(plan, spec, step, known.images, dtype, device, filtered=filtered)
        moved += sum(_decoder(tokenizer, side, images, decoder_item)[1] for images, side in known.previewed)
        steps.append(
            StepWork(
                scale=step.samples,
                block_flops=counted.blocks,
                other_flops=counted.others,
                other_types=_other_types(plan, step.backbone, counted.products, dtype),
                bytes_moved=moved,
                state_peak=known.state_peak,
                state_after=known.state_after,
                activations=max(within, after - (known.state_peak - known.state_after)),
                operators=_operators(known, device),
            )
        )
    flops, moved = _decoder(tokenizer, plan.model.sides[-1], batch, decoder_item)
    return PlanWork(
        steps=tuple(steps),
        decoder_flops=flops,
        decoder_bytes=moved,
        weight_bytes=weight_bytes(plan, dtype, device),
        batch=batch,
        dtype=dtype,
    )


def least(plan: Plan, *, batch: int, dtype: str, device: str = "cuda") -> PlanWork:
    """The work where each token computes one expert, if their number varies, and all images go the way of the fewest FLOPs; of
    a plan that does not hang on content, its work."""
    taken = least_taken(plan, batch=batch, dtype=dtype, device=device)
    return work(at_least(plan), batch=batch, dtype=dtype, device=device, taken=taken)


def least_taken(plan: Plan, *, batch: int, dtype: str, device: str = "cuda") -> WaysTaken:
    """All images on the way of the fewest FLOPs."""
    if plan.decision is None:
        return ()

    def flops(taken: WaysTaken) -> int:
        steps = foreseen(plan, batch=batch, dtype=dtype, taken=taken).steps
        return sum(step.blocks + step.others for step in flops_of(steps, plan))

    return min((alone(plan, way, batch=batch) for way in range(len(plan.decision.ways))), key=flops)


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
        bound=hardware.bounds(counted.dtype),
        steps=tuple(
            seconds(step.flops, step.bytes_moved, step.other_types) + step.operators * hardware.operator_us * 1e-6
            for step in counted.steps
        ),
        decoder=seconds(counted.decoder_flops, counted.decoder_bytes),
    )


def _operators(step: StepSeen, device: str) -> int:
    kind = device.partition(":")[0]
    halves = sum(bool(call.attention) + bool(call.ffn) for call in step.calls)
    return halves * OPERATORS_OF_HALF[kind] + OPERATORS_OF_STEP[kind]


class StepFlops(NamedTuple):
    attention: int
    """Queries with keys, and weights with values; and what choosing and merging cache entries takes."""
    products: dict[Part, int]
    """Products with matrices, by part, as transforms leave them."""
    phi: int
    """The quantiser's convolution."""
    choosing: int
    """Picking tokens and filling in the others, choosing parts of FFNs and estimating the rest, as the plugin declares it."""
    previews: int
    """Decoding maps to decide by."""

    @property
    def blocks(self) -> int:
        return self.attention + self.products["attention"] + self.products["ffn"] + self.choosing

    @property
    def others(self) -> int:
        return self.phi + self.previews + self.products["conditioning"] + self.products["ends"]


def flops_of(steps: Sequence[StepSeen], plan: Plan) -> Iterator[StepFlops]:
    """FLOPs of steps that were seen, or foreseen. Of the plan only sizes are asked, and what its transforms declare; and where
    not all layers need run, which ones are made ready for."""
    layers: dict[str, set[int]] = {}
    for call in (call for step in steps for call in step.calls):
        layers.setdefault(call.backbone, set()).add(call.layer)
    for ready in plan.steps if plan.decision is not None else ():
        layers.setdefault(ready.backbone, set()).update(call.layer for call in ready.calls)
    tokenizer, picking = plan.model.tokenizer, _declared_picking(plan)
    for step in steps:
        backbone = step.calls[0].backbone
        spec = plan.backbone(backbone)
        # AdaLN vectors are made in a backbone's first step.
        products = _product_flops(plan.model, spec, step, vectors_of=len(layers.pop(backbone, ())))
        yield StepFlops(
            attention=sum(call.attending * _attention_flops(spec, call) for call in step.calls),
            products={part: round(flops * plan.change(backbone, part).flops) for part, flops in products.items()},
            phi=2 * step.images * plan.model.tokens[-1] * tokenizer.code_dim**2 * 9,
            choosing=sum(_choosing(plan, step, call) + _picking(picking, step, call) for call in step.calls),
            previews=sum(_decoder(tokenizer, side, images, 0)[0] for images, side in step.previewed),
        )


def _choosing(plan: Plan, step: StepSeen, call: CallSeen) -> int:
    if plan.choosing is None:
        return 0
    gated = step.rows * call.ffn if call.estimated else 0
    return (
        plan.choosing.routing * call.routed + plan.choosing.gating * gated + plan.choosing.estimating * call.estimated
    )


_Picked = tuple[str, int, int]
"""A backbone, its layer, and how many tokens the scale has."""


def _declared_picking(plan: Plan) -> dict[_Picked, tuple[int, int]]:
    """FLOPs for each row of picking tokens for attention and for the FFN, where there are any."""
    ways = () if plan.decision is None else plan.decision.ways
    return {
        (step.backbone, call.layer, plan.model.tokens[step.samples]): (call.attention.picking, call.ffn.picking)
        for steps in (plan.steps, *(way.steps for way in ways))
        for step in steps
        for call in step.calls
        if call.attention.picking or call.ffn.picking
    }


def _picking(declared: dict[_Picked, tuple[int, int]], step: StepSeen, call: CallSeen) -> int:
    for_attention, for_ffn = declared.get((call.backbone, call.layer, step.drawn), (0, 0))
    attention, ffn = (max(rows) for rows in zip(call.filled, call.noted, strict=True))
    return attention * for_attention + ffn * for_ffn


def _attention_flops(spec: ModelSpec, call: CallSeen) -> int:
    return sum(
        2 * (use.read + use.own) * _products_of_an_entry(call, use) * use.heads * spec.head_dim for use in call.caches
    )


def _products_of_an_entry(call: CallSeen, use: CacheSeen) -> int:
    """Vectors that each entry attended to is multiplied with: queries and weights of its attention, those observed, and to
    merge, the keys that stay and the weights of both averages."""
    merging = 3 * (use.read + use.own - use.merged) if use.merged else 0
    return 2 * call.attention + use.observed + merging


def _product_flops(model: ModelSpec, spec: ModelSpec, step: StepSeen, *, vectors_of: int) -> dict[Part, int]:
    """With the AdaLN vectors of so many layers: a row an image, and one for "no class"."""
    width, rows, batch, tokenizer = spec.width, step.rows, step.images, model.tokenizer
    vectors = batch + (1 if rows > batch else 0)
    sixes = 1 if spec.shared_adaln else vectors_of
    return {
        "attention": sum(call.attending * 2 * call.attention * width * 4 * width for call in step.calls),
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


def _decoder(spec: TokenizerSpec, side: int, batch: int, item: int) -> tuple[int, int]:
    """FLOPs and bytes moved by decoding."""
    flops, moved = 0, 0
    for inputs, outputs, kernel, at in convolutions(spec, side):
        flops += 2 * inputs * outputs * kernel**2 * at * at
        # The convolution, and the norm and activation before it.
        moved += (inputs * 5 + outputs) * at * at * item
    places = side * side
    channels = spec.channels * spec.multipliers[-1]
    attentions = spec.blocks + 2
    flops += attentions * 4 * places * places * channels
    return batch * flops, batch * moved
