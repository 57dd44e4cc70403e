"""Numbers and bytes of what is loaded: transformers as transforms leave them, and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.policies import MAIN, Part
from varbench.spec import ModelSpec, TokenizerSpec


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


def decoder_type(dtype: str, device: str) -> str:
    """What the decoder's convolutions are stored in: on a GPU, autocast makes the compute type of float32 as it goes."""
    return "bfloat16" if dtype == "bfloat16" and device == "cpu" else "float32"


def weight_bytes(plan: Plan, dtype: str, device: str) -> int:
    """Bytes of every transformer that the row runs on, and of the tokenizer: float32, but for the decoder's convolutions."""
    spec = plan.model.tokenizer
    in_decoder = sum((inputs * kernel**2 + 1) * outputs for inputs, outputs, kernel, _ in convolutions(spec, 1))
    spared = round((4 - ITEM[decoder_type(dtype, device)]) * in_decoder)
    tokenizer = 4 * tokenizer_parameters(spec, plan.model.scales) - spared
    return tokenizer + sum(backbone_bytes(plan, name, dtype) for name, _ in plan.backbones)


def backbone_bytes(plan: Plan, name: str, dtype: str) -> int:
    """Bytes of one transformer as transforms leave it."""
    spec = plan.backbone(name)
    bytes_ = 4.0 * parameters(spec)["others"]
    for part, (_, biases) in matrices(spec).items():
        bytes_ += matrix_bytes(plan, name, part, dtype) + biases * ITEM[plan.change(name, part).bias_type or dtype]
    if name == MAIN and plan.own is not None:
        bytes_ += plan.own.trained * ITEM[dtype] + plan.own.whole * 8
    return round(bytes_)


def matrix_bytes(plan: Plan, name: str, part: Part, dtype: str) -> float:
    """Of all layers, with what is stored beside."""
    change = plan.change(name, part)
    numbers, _ = matrices(plan.backbone(name))[part]
    return change.weights * numbers * ITEM[change.weight_type or dtype] + change.extra_bytes


def convolutions(spec: TokenizerSpec, side: int) -> Iterator[tuple[int, int, int, int]]:
    """The decoder's convolutions as (inputs, outputs, kernel, side), attention's products aside."""
    widths = [spec.channels * m for m in spec.multipliers]
    deepest = len(widths) - 1
    yield spec.code_dim, spec.code_dim, 3, side
    yield spec.code_dim, widths[-1], 3, side
    for _ in range(2):
        yield from residual(widths[-1], widths[-1], side)
    yield from attention_convolutions(widths[-1], side)
    before = widths[-1]
    for level in range(deepest, -1, -1):
        for _ in range(spec.blocks + 1):
            yield from residual(before, widths[level], side)
            before = widths[level]
            if level == deepest:
                yield from attention_convolutions(before, side)
        if level:
            side *= 2
            yield before, before, 3, side
    yield before, 3, 3, side


def residual(before: int, after: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    yield before, after, 3, side
    yield after, after, 3, side
    if before != after:
        yield before, after, 1, side


def attention_convolutions(channels: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    yield channels, 3 * channels, 1, side
    yield channels, channels, 1, side


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
