"""What the student and the teacher's help cost, counted from sizes alone, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from varbench.spec import ModelSpec, TokenizerSpec


@dataclass(frozen=True, kw_only=True)
class Jump:
    """One pass of the student: over how many tokens, and for how many of them each head is read."""

    tokens: int
    logits: int
    vectors: int


def student_flops(model: ModelSpec, jump: Jump, *, batch: int, everywhere: bool) -> int:
    """`everywhere`: what says data or noise goes through every layer's linear token by token."""
    width, code_dim = model.width, model.tokenizer.code_dim
    places = jump.tokens + 1
    token = 4 * width * width + 2 * width * model.hidden
    image = model.depth * (places * token + 2 * places * places * width + 6 * width * width)
    image += jump.tokens * code_dim * width + jump.logits * width * model.tokenizer.vocabulary
    image += jump.vectors * width * code_dim + (2 * width * width if jump.logits else 0)
    kinds = (batch * places if everywhere else 2) * (model.depth + 1) * width * width
    return 2 * (batch * image + kinds)


def student_parameters(model: ModelSpec) -> int:
    width, code_dim = model.width, model.tokenizer.code_dim
    heads = (
        2 * width * width + 2 * width + (width + 1) * model.tokenizer.vocabulary + (width + 1) * code_dim + 2 * width
    )
    return _layers(model) + heads + _tables(model, model.length + 1, model.scales + 1) + _kinds(model)


def teacher_parameters(model: ModelSpec) -> int:
    heads = 2 * model.width * (model.width + 1) + (model.width + 1) * model.tokenizer.vocabulary
    return _layers(model) + heads + _tables(model, model.length, model.scales)


def _layers(model: ModelSpec) -> int:
    width, hidden = model.width, model.hidden
    attention = 4 * width * width + 3 * width + (model.heads if model.l2_attention else 0)
    return model.depth * (attention + 2 * width * hidden + hidden + width + 6 * width * (width + 1))


def _tables(model: ModelSpec, places: int, levels: int) -> int:
    return model.width * (model.tokenizer.code_dim + 1 + model.classes + 1 + 1 + places + levels)


def _kinds(model: ModelSpec) -> int:
    return model.width * (2 + (model.depth + 1) * (model.width + 1))


def teacher_flops(model: ModelSpec, *, given: int, until: int, batch: int) -> int:
    """Of its steps for the scales from `given` to `until`, the first of which also encodes those that are given. Both branches
    run; the vectors made of the class are made once for all unlabelled rows."""
    width = model.width
    flops = (batch + 1) * (6 * model.depth + 2) * width * width
    for scale in range(given, until):
        end = model.starts[scale + 1]
        tokens = end if scale == given else model.tokens[scale]
        layer = tokens * (4 * width * width + 2 * width * model.hidden) + 2 * tokens * end * width
        flops += 2 * batch * (model.depth * layer + model.tokens[scale] * width * model.tokenizer.vocabulary)
        flops += batch * (tokens - (scale == given)) * model.tokenizer.code_dim * width
    return 2 * flops


def teacher_state_bytes(model: ModelSpec, *, given: int, until: int, batch: int, item: int) -> int:
    """Of both branches, keys and values, of which the last step's are read by nobody, and what is made of the class for all
    steps: by layer two vectors in the compute type and four in float32."""
    stored = model.starts[until - 1] if until - given > 1 else 0
    vectors = model.depth * (2 * item + 4 * 4) + 2 * item
    return 2 * batch * model.width * (2 * model.depth * stored * item + vectors)


def noise_bytes(model: ModelSpec, *, batch: int) -> int:
    """Held from pass to pass."""
    return 4 * batch * model.length * model.tokenizer.code_dim


def pixel_flops(model: ModelSpec, *, maps: int, batch: int) -> int:
    """Of `maps` convolutions of scales' contributions to the running map, and of the tokenizer's decoder."""
    spec, side = model.tokenizer, model.sides[-1]
    deepest, places = spec.channels * spec.multipliers[-1], side * side
    products = (spec.blocks + 2) * 2 * places * places * deepest
    contributions = maps * 9 * spec.code_dim * spec.code_dim * places
    return 2 * batch * (contributions + products + sum(_convolutions(spec, side)))


def _convolutions(spec: TokenizerSpec, side: int) -> Iterator[int]:
    """Multiplications and additions of each of the decoder's convolutions."""
    widths = [spec.channels * multiple for multiple in spec.multipliers]
    deepest = len(widths) - 1
    before = widths[-1]

    def residual(inputs: int, outputs: int) -> int:
        return 9 * (inputs + outputs) * outputs + (inputs * outputs if inputs != outputs else 0)

    yield 9 * spec.code_dim * (spec.code_dim + before) * side * side
    yield (2 * residual(before, before) + 4 * before * before) * side * side
    for level in range(deepest, -1, -1):
        for _ in range(spec.blocks + 1):
            attention = 4 * widths[level] ** 2 if level == deepest else 0
            yield (residual(before, widths[level]) + attention) * side * side
            before = widths[level]
        if level:
            side *= 2
            yield 9 * before * before * side * side
    yield 9 * before * 3 * side * side
