"""What a layer computes beside its products, each in one pass over memory on a GPU. Triton.

Imported where a GPU computes and nowhere else. Letters as in `transformer`; the plain forms lie where these are called from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def modulated(
    x_RLC: Tensor,
    scale_R1C: Tensor,
    shift_R1C: Tensor,
    dtype: torch.dtype,
    *,
    eps: float,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`added` is what a sub-layer gave and its gate: x gets it first, where it lies."""
    x_RLC = x_RLC if added else x_RLC.contiguous()
    rows, length, width = x_RLC.shape
    given_RLC, gamma_R1C = added or (x_RLC, scale_R1C)
    assert x_RLC.is_contiguous() and scale_R1C.stride() == shift_R1C.stride()
    made = torch.empty(x_RLC.shape, dtype=dtype, device=x_RLC.device)
    _modulated[(rows * length,)](
        x_RLC, given_RLC.contiguous(), gamma_R1C, scale_R1C, shift_R1C, made, length, width, gamma_R1C.stride(0), scale_R1C.stride(0), eps,
        ADD=added is not None, **_by_width(width),
    )  # fmt: skip
    return made


def add_gated_(x_RLC: Tensor, given_RLC: Tensor, gamma_R1C: Tensor) -> None:
    rows, length, width = x_RLC.shape
    assert x_RLC.is_contiguous()
    _add_gated[(rows * length,)](
        x_RLC, given_RLC.contiguous(), gamma_R1C, length, width, gamma_R1C.stride(0), **_by_width(width)
    )


def unit_queries_and_keys(
    qkv_RL3Hc: Tensor,
    scale_mul_1H11: Tensor,
    dtype: torch.dtype,
    keys: torch.dtype,
    *,
    shortest: float,
    most: float,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(R, H, L, c) each; queries lie token by token, as attention's output then does. Keys too, unless they go `into` a place,
    and values into another."""
    rows, length, _, heads, size = qkv_RL3Hc.shape
    assert qkv_RL3Hc.is_contiguous()
    q_RHLc = torch.empty((rows, length, heads, size), dtype=dtype, device=qkv_RL3Hc.device).transpose(1, 2)
    k_RHLc, v_RHLc = into or (torch.empty_like(q_RHLc, dtype=keys), q_RHLc)
    assert k_RHLc.stride() == v_RHLc.stride() or into is None
    _unit_queries_and_keys[(rows * length,)](
        qkv_RL3Hc, scale_mul_1H11, q_RHLc, k_RHLc, v_RHLc, length, heads, *k_RHLc.stride()[:3], shortest, most,
        SIZE=size, BLOCK=triton.next_power_of_2(heads), VALUES=into is not None,
    )  # fmt: skip
    return q_RHLc, k_RHLc


def put(source_RHnc: Tensor, into_RHnc: Tensor) -> None:
    """Copies; what a head has of a token lies together on both sides."""
    rows, heads, count, size = source_RHnc.shape
    assert into_RHnc.shape == source_RHnc.shape and source_RHnc.stride(3) == into_RHnc.stride(3) == 1
    _put[(rows * count,)](
        source_RHnc, into_RHnc, count, heads, *source_RHnc.stride()[:3], *into_RHnc.stride()[:3],
        SIZE=size, BLOCK=triton.next_power_of_2(heads),
    )  # fmt: skip


_PLACES, _ROUNDS = 32, 16
"""Of a map: places that a program takes together, and how often."""


def group_norm_silu(x_BChw: Tensor, weight_C: Tensor, bias_C: Tensor, *, groups: int, eps: float, silu: bool) -> Tensor:
    """Of a map whose channels lie innermost, and so do those of what is made; sums in float32."""
    batch, channels, height, width = x_BChw.shape
    places = height * width
    assert x_BChw.is_contiguous(memory_format=torch.channels_last)
    pieces = triton.cdiv(places, _PLACES * _ROUNDS)
    block = triton.next_power_of_2(channels)
    sums = torch.empty((batch, pieces, 2, channels), dtype=torch.float32, device=x_BChw.device)
    line = torch.empty((batch, 2, channels), dtype=torch.float32, device=x_BChw.device)
    made = torch.empty_like(x_BChw)
    _sums[(batch, pieces)](
        x_BChw, sums, places, channels, pieces, PLACES=_PLACES, ROUNDS=_ROUNDS, BLOCK=block, num_warps=8
    )
    _lines[(batch, groups)](
        sums, weight_C, bias_C, line, pieces, channels, channels // groups, places * (channels // groups), eps,
        PIECES=triton.next_power_of_2(pieces), EACH=triton.next_power_of_2(channels // groups),
    )  # fmt: skip
    _along_lines[(triton.cdiv(places, _PLACES), batch)](
        x_BChw, line, made, places, channels, PLACES=_PLACES, BLOCK=block, SILU=silu, num_warps=8
    )
    return made


def _by_width(width: int) -> dict[str, Any]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": 4 if block <= 2048 else 8}


def kernel(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@kernel
def _modulated(
    x: tl.tensor,
    given: tl.tensor,
    gamma: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    made: tl.tensor,
    length: tl.tensor,
    width: tl.tensor,
    gamma_row: tl.tensor,
    scale_row: tl.tensor,
    eps: tl.tensor,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    row = token // length
    at = tl.arange(0, BLOCK)
    inside = at < width
    number = tl.load(x + token * width + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(given + token * width + at, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(gamma + row * gamma_row + at, mask=inside, other=0.0).to(tl.float32)
        added = added * gate
        if gamma.dtype.element_ty != tl.float32:  # as the plain form rounds it
            added = added.to(given.dtype.element_ty).to(tl.float32)
        number += added
        tl.store(x + token * width + at, number, mask=inside)
    mean = tl.sum(number, axis=0) / width
    centred = tl.where(inside, number - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    normed = centred * (1.0 / tl.sqrt(variance + eps))
    times = tl.load(scale + row * scale_row + at, mask=inside, other=0.0).to(tl.float32)
    plus = tl.load(shift + row * scale_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(made + token * width + at, (normed * times + plus).to(made.dtype.element_ty), mask=inside)


@kernel
def _add_gated(
    x: tl.tensor,
    given: tl.tensor,
    gamma: tl.tensor,
    length: tl.tensor,
    width: tl.tensor,
    gamma_row: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    row = token // length
    at = tl.arange(0, BLOCK)
    inside = at < width
    stream = tl.load(x + token * width + at, mask=inside, other=0.0)
    added = tl.load(given + token * width + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gamma + row * gamma_row + at, mask=inside, other=0.0).to(tl.float32)
    added = added * gate
    if gamma.dtype.element_ty != tl.float32:
        added = added.to(given.dtype.element_ty).to(tl.float32)
    tl.store(x + token * width + at, stream + added, mask=inside)


@kernel
def _unit_queries_and_keys(
    qkv: tl.tensor,
    scale_mul: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    length: tl.tensor,
    heads: tl.tensor,
    key_row: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    shortest: tl.tensor,
    most: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    VALUES: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK)
    within = tl.arange(0, SIZE)[None, :]
    at = head[:, None] * SIZE + within
    inside = (head < heads)[:, None] & (within >= 0)
    width = heads * SIZE
    there = (token // length) * key_row + (token % length) * key_token + head[:, None] * key_head + within
    wanted = tl.exp(tl.minimum(tl.load(scale_mul + head, mask=head < heads, other=0.0).to(tl.float32), most))
    query = tl.load(qkv + token * 3 * width + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.maximum(tl.sqrt(tl.sum(query * query, axis=1)), shortest)
    tl.store(q + token * width + at, (query * (wanted / size)[:, None]).to(q.dtype.element_ty), mask=inside)
    key = tl.load(qkv + token * 3 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.maximum(tl.sqrt(tl.sum(key * key, axis=1)), shortest)
    tl.store(k + there, (key * (1.0 / size)[:, None]).to(k.dtype.element_ty), mask=inside)
    if VALUES:
        value = tl.load(qkv + token * 3 * width + 2 * width + at, mask=inside, other=0.0)
        tl.store(v + there, value.to(v.dtype.element_ty), mask=inside)


@kernel
def _put(
    source: tl.tensor,
    into: tl.tensor,
    count: tl.tensor,
    heads: tl.tensor,
    from_row: tl.tensor,
    from_head: tl.tensor,
    from_token: tl.tensor,
    to_row: tl.tensor,
    to_head: tl.tensor,
    to_token: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    row, place = token // count, token % count
    head = tl.arange(0, BLOCK)[:, None]
    within = tl.arange(0, SIZE)[None, :]
    inside = (head < heads) & (within >= 0)
    found = tl.load(source + row * from_row + place * from_token + head * from_head + within, mask=inside, other=0.0)
    there = into + row * to_row + place * to_token + head * to_head + within
    tl.store(there, found.to(into.dtype.element_ty), mask=inside)


@kernel
def _sums(
    x: tl.tensor,
    sums: tl.tensor,
    places: tl.tensor,
    channels: tl.tensor,
    pieces: tl.tensor,
    PLACES: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Of each channel, over a piece of the map: of the numbers and of their squares."""
    image, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((PLACES, BLOCK), dtype=tl.float32)
    squares = tl.zeros((PLACES, BLOCK), dtype=tl.float32)
    for turn in range(ROUNDS):
        place = (piece * ROUNDS + turn) * PLACES + tl.arange(0, PLACES)[:, None]
        inside = (place < places) & (channel < channels)
        number = tl.load(x + (image * places + place) * channels + channel, mask=inside, other=0.0).to(tl.float32)
        total += number
        squares += number * number
    here = sums + (image * pieces + piece) * 2 * channels + tl.arange(0, BLOCK)
    tl.store(here, tl.sum(total, axis=0), mask=tl.arange(0, BLOCK) < channels)
    tl.store(here + channels, tl.sum(squares, axis=0), mask=tl.arange(0, BLOCK) < channels)


@kernel
def _lines(
    sums: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    line: tl.tensor,
    pieces: tl.tensor,
    channels: tl.tensor,
    each: tl.tensor,
    numbers: tl.tensor,
    eps: tl.tensor,
    PIECES: tl.constexpr,
    EACH: tl.constexpr,
) -> None:
    """Of a group: the line that each channel's numbers are put through, a factor and what is added."""
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within = tl.arange(0, EACH)
    channel = group * each + within
    piece = tl.arange(0, PIECES)[:, None]
    there = sums + (image * pieces + piece) * 2 * channels + channel[None, :]
    inside = (piece < pieces) & (within < each)[None, :]
    mean = tl.sum(tl.sum(tl.load(there, mask=inside, other=0.0), axis=1), axis=0) / numbers
    squares = tl.sum(tl.sum(tl.load(there + channels, mask=inside, other=0.0), axis=1), axis=0) / numbers
    factor = 1.0 / tl.sqrt(tl.maximum(squares - mean * mean, 0.0) + eps)
    times = tl.load(weight + channel, mask=within < each, other=0.0).to(tl.float32) * factor
    plus = tl.load(bias + channel, mask=within < each, other=0.0).to(tl.float32) - mean * times
    tl.store(line + image * 2 * channels + channel, times, mask=within < each)
    tl.store(line + image * 2 * channels + channels + channel, plus, mask=within < each)


@kernel
def _along_lines(
    x: tl.tensor,
    line: tl.tensor,
    made: tl.tensor,
    places: tl.tensor,
    channels: tl.tensor,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    piece, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    times = tl.load(line + image * 2 * channels + channel, mask=channel < channels, other=0.0)[None, :]
    plus = tl.load(line + image * 2 * channels + channels + channel, mask=channel < channels, other=0.0)[None, :]
    place = piece * PLACES + tl.arange(0, PLACES)[:, None]
    inside = (place < places) & (channel < channels)[None, :]
    at = (image * places + place) * channels + channel[None, :]
    number = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * times + plus
    if SILU:
        number = number / (1.0 + tl.exp(-number))
    tl.store(made + at, number.to(made.dtype.element_ty), mask=inside)
