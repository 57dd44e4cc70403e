"""A layer as training runs it: the same arithmetic as the modules', with the backward of everything but the matrix
products written out.

A small model's training is bound by passes over memory, not by products. Left to autograd, modulation, normalisation of
heads, masking, gelu and gates are some hundred passes a layer; here they are about half, in the same precision or a higher
one, and one for each where a CPU has our kernels (`trained_in_c`). Letters as in `varbench.engine.teacher`; c is a head's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from varbench.engine import trained_in_c
from varbench.model import c_kernels
from varbench.model.fused import EPS, MAX_LOG_SCALE, no_affine
from varbench.model.transformer import Attention, Layer, linear

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(q, k, v, mask of what may be seen, softmax scale) -> mixed values."""

_SMALLEST_NORM = 1e-12
_GELU = 2 * math.sqrt(2 / math.pi)
_GELU_CUBE = 0.044715 * _GELU
_GELU_PIECE = 2**16
"""Elements of gelu that a thread has in work at a time: its intermediate values then stay in a core's own cache."""


def trained_layer(
    x_BnC: Tensor,
    block: Layer,
    modulation: tuple[Tensor, ...],
    mask: Tensor | None,
    dtype: torch.dtype,
    attend: Attend,
    parts: Callable[[Tensor], Tensor] | None = None,
    feeds: bool = True,
) -> Tensor:
    """`parts` stands in the FFN's place, where a part of it is computed. Attention is left out without a mask, the FFN where
    nothing `feeds` it."""
    gamma1, gamma2, gain1, gain2, shift1, shift2 = modulation
    attn, ffn = block.attn, block.ffn
    if mask is not None:
        x_BnC, normed = _norm(x_BnC, gain1, shift1, dtype)
        q, k, v = _heads(attn, normed, dtype)
        mixed = attend(q, k, v, mask, attn.softmax_scale)
        x_BnC = _sum(x_BnC, attn.out(mixed, dtype), gamma1)
    if not feeds:
        return x_BnC
    if parts is not None:
        x_BnC, normed = _norm(x_BnC, gain2, shift2, torch.float32)
        return _sum(x_BnC, parts(normed), gamma2)
    x_BnC, normed = _norm(x_BnC, gain2, shift2, dtype)
    hidden = _activated(linear(normed, ffn.fc1, dtype))
    return _sum(x_BnC, linear(hidden, ffn.fc2, dtype), gamma2)


def _in_c(x: Tensor, dtype: torch.dtype) -> bool:
    """A compiler fuses plain operators itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and c_kernels.there(dtype)


def _norm(x_BnC: Tensor, gain_B1C: Tensor, shift_B1C: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The stream, and what is normed, scaled and shifted of it."""
    if x_BnC.dtype == torch.float32 and _in_c(x_BnC, dtype):
        return trained_in_c.modulated_norm(x_BnC, gain_B1C, shift_B1C, dtype)
    return x_BnC, _modulated_norm(x_BnC, gain_B1C, shift_B1C, dtype)


def _sum(x_BnC: Tensor, branch_BnC: Tensor, gate_B1C: Tensor) -> Tensor:
    if x_BnC.dtype == torch.float32 and _in_c(x_BnC, branch_BnC.dtype):
        return trained_in_c.gated_sum(x_BnC, branch_BnC, gate_B1C)
    return _gated_sum(x_BnC, branch_BnC, gate_B1C)


def _activated(x: Tensor) -> Tensor:
    if _in_c(x, x.dtype) and c_kernels.activates(x):
        return trained_in_c.gelu(x)
    return F.gelu(x, approximate="tanh") if x.is_cuda else _gelu(x)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The softmax written out: on a CPU in bfloat16 its backward is twice as fast as the fused kernel's."""
    return _attention(q, k.to(q.dtype), v, mask, scale)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v, attn_mask=mask, scale=scale)


def _heads(attn: Attention, h_BnC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, H, n, c); q and k of unit length, and q times its head's scale, where the model has it so."""
    bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    qkv = linear(h_BnC, attn.mat_qkv, dtype, bias=bias).unflatten(2, (3, attn.heads, -1))
    if not attn.l2:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v
    make = trained_in_c.unit_heads if _in_c(qkv, qkv.dtype) else _unit_heads
    return make(qkv, attn.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp())


# torch leaves `Function.apply`, which these are, untyped.
_attention: Attend
_unit_heads: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
_modulated_norm: Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
_gated_sum: Callable[[Tensor, Tensor, Tensor], Tensor]
_gelu: Callable[[Tensor], Tensor]


class _ModulatedNorm(Function):
    """LayerNorm in float32, times one plus the scale (`gain`), plus the shift, both (B, 1, C); given in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
        y, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], *no_affine(x), EPS)
        ctx.save_for_backward(x, y, mean, deviation, gain)
        ctx.shift_dtype = shift.dtype
        return torch.addcmul(shift.float(), y, gain.float()).to(dtype)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, deviation, gain = ctx.saved_tensors
        given = given.float()
        for_shift = given.sum(dim=1, keepdim=True).to(ctx.shift_dtype)
        for_gain = (given * y).sum(dim=1, keepdim=True).to(gain.dtype)
        for_y = given * gain.float()
        for_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            for_y, x, x.shape[-1:], mean, deviation, None, None, [True, False, False]
        )
        return for_x, for_gain, for_shift, None


class _GatedSum(Function):
    """x + branch * gate, in x's float32; the gate is (B, 1, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(branch, gate)
        return torch.addcmul(x, branch.float(), gate.float())

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, ...]:
        branch, gate = ctx.saved_tensors
        for_branch = (given * gate.float()).to(branch.dtype)
        for_gate = (given * branch.float()).sum(dim=1, keepdim=True).to(gate.dtype)
        return given, for_branch, for_gate


class _UnitHeads(Function):
    """q, k, v of (B, n, 3, H, c), q and k of unit length, q times `scale` (1, H, 1, 1): each in one piece (B, H, n, c)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _, heads, size = qkv.shape
        apart = qkv.permute(2, 0, 3, 1, 4)
        unit = torch.empty(2, batch, heads, length, size, device=qkv.device).copy_(apart[:2])
        inverse = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min_(_SMALLEST_NORM).reciprocal_()
        unit.mul_(inverse)
        ctx.save_for_backward(unit, inverse, scale)
        return (unit[0] * scale).to(qkv.dtype), unit[1].to(qkv.dtype), apart[2].contiguous()

    @staticmethod
    def backward(ctx: Any, for_q: Tensor, for_k: Tensor, for_v: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse, scale = ctx.saved_tensors
        for_unit = torch.empty_like(unit)
        for_unit[0], for_unit[1] = for_q, for_k
        along = for_unit * unit
        along_q = along[0].sum(dim=(0, 2, 3)).view_as(scale)
        for_unit[0].mul_(scale)
        along = along.sum(dim=-1, keepdim=True)
        along[0].mul_(scale)
        for_unit.addcmul_(unit, along, value=-1).mul_(inverse)
        _, batch, heads, length, size = unit.shape
        for_qkv = torch.empty(batch, length, 3, heads, size, dtype=for_q.dtype, device=for_q.device)
        apart = for_qkv.permute(2, 0, 3, 1, 4)
        apart[:2], apart[2] = for_unit, for_v
        return for_qkv, along_q


class _Attention(Function):
    """Attention with its softmax written out; the mask, (n, n) or (H, n, n), is added while the scores are made."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        batch, heads, length, size = q.shape
        unseen = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)
        if mask.dim() == 3:
            unseen = unseen.repeat(batch, 1, 1)
        q, k, v = (one.reshape(-1, length, size) for one in (q, k, v))
        shares = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=scale).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, shares)
        ctx.scale = scale
        return torch.bmm(shares, v).view(batch, heads, length, size)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        shape = given.shape
        given = given.reshape(q.shape)
        for_v = torch.bmm(shares.transpose(1, 2), given)
        for_shares = torch.bmm(given, v.transpose(1, 2))
        for_scores = torch.ops.aten._softmax_backward_data(for_shares, shares, -1, shares.dtype)
        for_q, for_k = torch.bmm(for_scores, k), torch.bmm(for_scores.transpose(1, 2), q)
        if ctx.scale != 1:
            for_q, for_k = for_q.mul_(ctx.scale), for_k.mul_(ctx.scale)
        return for_q.view(shape), for_k.view(shape), for_v.view(shape), None, None


class _Gelu(Function):
    """For a CPU, whose own kernel is slow: gelu's tanh form, which is x sigmoid(u) with u = x (a + b x^2). The slope is made
    with it and kept in place of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out, slope = torch.empty_like(x), torch.empty_like(x)
        a = torch.tensor(_GELU, device=x.device)
        piece = _GELU_PIECE * torch.get_num_threads()
        work = torch.empty(4, min(piece, x.numel()), device=x.device)
        for x_piece, out_piece, slope_piece in zip(
            *(one.flatten().split(piece) for one in (x, out, slope)), strict=True
        ):
            some, share, made, rate = work[:, : len(x_piece)]
            some.copy_(x_piece)
            torch.addcmul(a, some, some, value=_GELU_CUBE, out=share).mul_(some).sigmoid_()
            out_piece.copy_(torch.mul(some, share, out=made))
            # sigmoid(u) + x sigmoid(u) (1 - sigmoid(u)) (a + 3 b x^2)
            torch.addcmul(a, some, some, value=3 * _GELU_CUBE, out=rate)
            torch.addcmul(made, made, share, value=-1, out=some)
            slope_piece.copy_(share.addcmul_(some, rate))
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> Tensor:
        slope: Tensor
        (slope,) = ctx.saved_tensors
        return given * slope


_attention, _unit_heads = _Attention.apply, _UnitHeads.apply
_modulated_norm, _gated_sum, _gelu = _ModulatedNorm.apply, _GatedSum.apply, _Gelu.apply
