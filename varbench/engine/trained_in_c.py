"""What training computes in a layer beside its products, on a CPU for which our kernels could be compiled: each, and its backward, in
one pass over memory.

The same arithmetic as in `trained_layer`, whose letters these are; sums are float32, and what is rounded is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from varbench.model.c_kernels import call, is16, of_rows, strides, threads
from varbench.model.fused import EPS, SHORTEST

modulated_norm: Callable[[Tensor, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]
gated_sum: Callable[[Tensor, Tensor, Tensor], Tensor]
unit_heads: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
gelu: Callable[[Tensor], Tensor]


class _NormPass(Function):
    """The stream as it is, and what is normed, scaled and shifted of it: so that what both get meets in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        stream, gain32, shift32 = x.contiguous(), of_rows(gain, x, torch.float32), of_rows(shift, x, torch.float32)
        made, found = x.new_empty(x.shape, dtype=dtype), stream.new_empty(batch, length, 2)
        call(
            "modulated", is16(made), False, stream, None, None, gain32, shift32, made, found, batch * length, length, width, EPS,
            threads(x.numel()),
        )  # fmt: skip
        ctx.save_for_backward(stream, found, gain32)
        ctx.given = gain.dtype, gain.shape, shift.dtype, shift.shape
        ctx.set_materialize_grads(False)
        return x, made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, through: Tensor | None, given: Tensor | None) -> tuple[Tensor | None, ...]:
        if given is None:
            return through, None, None, None
        x, found, gain = ctx.saved_tensors
        given = given.contiguous()
        through = None if through is None else through.contiguous()
        batch, length, width = x.shape
        for_x, (for_gain, for_shift) = torch.empty_like(x), x.new_zeros(2, batch, 1, width)
        call(
            "modulated_back", is16(given), given, through, x, found, gain, for_x, for_gain, for_shift, batch, length, width,
            threads(x.numel()),
        )  # fmt: skip
        gain_type, gain_shape, shift_type, shift_shape = ctx.given
        return (
            for_x,
            for_gain.sum_to_size(gain_shape).to(gain_type),
            for_shift.sum_to_size(shift_shape).to(shift_type),
            None,
        )


class _SumPass(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        batch, length, width = x.shape
        x, branch, gate32 = x.contiguous(), branch.contiguous(), of_rows(gate, x, torch.float32)
        made = torch.empty_like(x)
        call(
            "gated_sum", is16(branch), x, branch, gate32, made, batch * length, length, width, threads(x.numel())
        )  # fmt: skip
        ctx.save_for_backward(branch, gate32)
        ctx.gate = gate.dtype, gate.shape
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, ...]:
        branch, gate = ctx.saved_tensors
        batch, length, width = branch.shape
        given = given.contiguous()
        for_branch, for_gate = torch.empty_like(branch), gate.new_zeros(batch, 1, width)
        call(
            "gated_sum_back", is16(branch), given, branch, gate, for_branch, for_gate, batch, length, width,
            threads(given.numel()),
        )  # fmt: skip
        dtype, shape = ctx.gate
        return given, for_branch, for_gate.sum_to_size(shape).to(dtype)


class _HeadsPass(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _, heads, size = qkv.shape
        qkv, scale32 = qkv.contiguous(), scale.float().contiguous()
        q, k, v = qkv.new_empty(3, batch, heads, length, size).unbind(0)
        found = scale32.new_empty(batch, length, 2, heads)
        call(
            "unit_queries_and_keys", is16(qkv), is16(qkv), qkv, scale32, q, k, v, found, batch * length, length, heads,
            size, strides(q), strides(k), SHORTEST, threads(qkv.numel()),
        )  # fmt: skip
        ctx.save_for_backward(qkv, scale32, found)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_q: Tensor, for_k: Tensor, for_v: Tensor) -> tuple[Tensor, Tensor]:
        qkv, scale, found = ctx.saved_tensors
        batch, length, _, heads, size = qkv.shape
        for_q, for_k, for_v = for_q.contiguous(), for_k.contiguous(), for_v.contiguous()
        for_qkv, for_scale = torch.empty_like(qkv), scale.new_zeros(batch, heads)
        call(
            "unit_queries_and_keys_back", is16(qkv), for_q, for_k, for_v, qkv, scale, found, for_qkv, for_scale, batch,
            length, heads, size, threads(qkv.numel()),
        )  # fmt: skip
        return for_qkv, for_scale.sum(dim=0).view_as(scale)


class _GeluPass(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        made = torch.empty_like(x)
        call("gelu", x, None, made, x.numel(), threads(x.numel()))
        ctx.save_for_backward(x)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> Tensor:
        x: Tensor
        (x,) = ctx.saved_tensors
        given, made = given.contiguous(), torch.empty_like(x)
        call("gelu", x, given, made, x.numel(), threads(x.numel()))
        return made


modulated_norm, gated_sum, unit_heads, gelu = _NormPass.apply, _SumPass.apply, _HeadsPass.apply, _GeluPass.apply
