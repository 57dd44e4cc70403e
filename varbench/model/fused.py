"""What a layer computes beside its products, for generation: each in one pass over memory, by a kernel of ours, on a GPU and on a CPU
for which it could be compiled; elsewhere, and where gradients are wanted, by torch's own operators. One place and one rule, the
same for every method.

Letters as in `transformer`.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import wrap_torch_function

from varbench.model import c_kernels

EPS = 1e-6
MAX_LOG_SCALE = math.log(100)
SHORTEST = 1e-12
"""What is as short as nothing stays so when it is normalised, as in torch's `normalize`."""


@functools.cache
def _have_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def by_kernels(x: Tensor) -> bool:
    """On a GPU."""
    return x.is_cuda and not plain() and _have_triton()


def plain() -> bool:
    """Where torch's own operators compute: ours have no gradients, and a compiler fuses plain ones itself."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def kernels(x: Tensor, dtype: torch.dtype) -> ModuleType | None:
    """Ours for activations of this type where `x` lies, by one name on every device; None where torch's operators compute."""
    if x.is_cpu:
        return c_kernels if not plain() and c_kernels.there(dtype) else None
    if by_kernels(x):
        from varbench.model import triton_kernels

        return triton_kernels
    return None


def _by_rows(x_RLC: Tensor, *vectors: Tensor) -> bool:
    """Whether this is a stream, and these are vectors for each of its rows, or one for all."""
    shapes = ((len(x_RLC), 1, x_RLC.shape[-1]), (1, 1, x_RLC.shape[-1]))
    return x_RLC.dtype == torch.float32 and x_RLC.dim() == 3 and all(one.shape in shapes for one in vectors)


def normed(x_RLC: Tensor) -> Tensor:
    """LayerNorm without affine parameters, in float32."""
    return F.layer_norm(x_RLC.float(), (x_RLC.shape[-1],), *no_affine(x_RLC), eps=EPS)


def no_affine(x_RLC: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What LayerNorm is given where it has no parameters. On a CPU ones and zeros, with which torch takes the loop that works on
    many numbers at a time; the bits are the same, in two thirds of the time."""
    plain = x_RLC.device.type != "cpu" or torch.compiler.is_compiling()
    return (None, None) if plain else _ones_and_zeros(x_RLC.shape[-1])


@functools.cache
def _ones_and_zeros(width: int) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return torch.ones(width), torch.zeros(width)


def _norms(
    x_RLC: Tensor,
    scale_R1C: Tensor,
    shift_R1C: Tensor,
    dtype: torch.dtype,
    *,
    added: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    return x_RLC, scale_R1C, shift_R1C


@wrap_torch_function(_norms)
def modulated(
    x_RLC: Tensor,
    scale_R1C: Tensor,
    shift_R1C: Tensor,
    dtype: torch.dtype,
    *,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Normed, scaled and shifted in float32, then in `dtype`; no gradients. `added` is what a sub-layer gave and its gate: the
    stream gets it first, where it lies. A mode of torch sees all of it as one function, whatever is done inside."""
    whole = added is None or x_RLC.is_contiguous()
    vectors = (scale_R1C, shift_R1C) if added is None else (scale_R1C, shift_R1C, added[1])
    if (ours := kernels(x_RLC, dtype)) and whole and _by_rows(x_RLC, *vectors):
        found: Tensor = ours.modulated(x_RLC, scale_R1C, shift_R1C, dtype, eps=EPS, added=added)
        return found
    if added:
        add_gated_(x_RLC, *added)
    return normed(x_RLC).mul_(scale_R1C).add_(shift_R1C).to(dtype)


def add_gated_(x_RLC: Tensor, given_RLC: Tensor, gamma_R1C: Tensor) -> None:
    """Adds what a sub-layer gave, times its gate, to the stream where it lies."""
    ours = kernels(x_RLC, given_RLC.dtype)
    if ours and x_RLC.is_contiguous() and _by_rows(x_RLC, gamma_R1C):
        ours.add_gated_(x_RLC, given_RLC, gamma_R1C)
    else:
        x_RLC.add_(given_RLC * gamma_R1C)


def unit_queries_and_keys(
    qkv_RL3Hc: Tensor,
    scale_mul_1H11: Tensor,
    dtype: torch.dtype,
    keys: torch.dtype,
    *,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys (R, H, L, c) of length one, queries times their scale, in float32, and then in these types. Keys, and
    values as they are, are put `into` places where there are any."""
    ours = kernels(qkv_RL3Hc, dtype)
    fits = heads_fit(qkv_RL3Hc.shape[-1]) and qkv_RL3Hc.is_contiguous() and qkv_RL3Hc.dtype == dtype
    if ours and fits and keys in (dtype, torch.float32):
        found: tuple[Tensor, Tensor] = ours.unit_queries_and_keys(
            qkv_RL3Hc, scale_mul_1H11, dtype, keys, shortest=SHORTEST, most=MAX_LOG_SCALE, into=into
        )
        return found
    # Both at once, and where they lie.
    qk_RL2Hc = qkv_RL3Hc[:, :, :2].to(torch.float32, copy=True)
    lengths_RL2H1 = torch.linalg.vector_norm(qk_RL2Hc, dim=-1, keepdim=True).clamp_min(SHORTEST)
    scale_1H11 = scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
    wanted_12H1 = torch.cat((scale_1H11, torch.ones_like(scale_1H11))).view(1, 2, -1, 1)
    times_RL2H1 = wanted_12H1 / lengths_RL2H1
    qk_RL2Hc = qk_RL2Hc * times_RL2H1 if torch.is_grad_enabled() else qk_RL2Hc.mul_(times_RL2H1)
    q, k = (qk_RL2Hc.to(dtype) if keys == dtype and into is None else qk_RL2Hc).transpose(1, 3).unbind(2)
    q, k = q.to(dtype), k.to(keys)
    if into is not None:
        into[0].copy_(k)
        into[1].copy_(qkv_RL3Hc[:, :, 2].transpose(1, 2))
        k = into[0]
    return q, k


def heads_fit(size: int) -> bool:
    """Whether the kernels can take heads of this size."""
    return size & (size - 1) == 0


def put(source_RHnc: Tensor, into_RHnc: Tensor) -> None:
    """Copies entries of a cache."""
    if (
        by_kernels(source_RHnc)
        and heads_fit(source_RHnc.shape[3])
        and source_RHnc.stride(3) == into_RHnc.stride(3) == 1
    ):
        from varbench.model import triton_kernels

        triton_kernels.put(source_RHnc, into_RHnc)
    else:
        into_RHnc.copy_(source_RHnc)


def group_norm_silu(
    x_BChw: Tensor, weight_C: Tensor, bias_C: Tensor, *, groups: int, eps: float, silu: bool
) -> Tensor | None:
    """Group norm of a map, and SiLU of it where asked for; None where there is no kernel for that."""
    narrow = x_BChw.dtype in (torch.bfloat16, torch.float16) and groups & (groups - 1) == 0
    if not (by_kernels(x_BChw) and narrow and x_BChw.is_contiguous(memory_format=torch.channels_last)):
        return None
    from varbench.model import triton_kernels

    return triton_kernels.group_norm_silu(x_BChw, weight_C, bias_C, groups=groups, eps=eps, silu=silu)


def drawn(logits_BlV: Tensor, uniforms_Bl: Tensor, *, top_k: int, top_p: float) -> Tensor | None:
    """Codes, drawn as the sampler's plain form does; None where there is no kernel."""
    if not by_kernels(logits_BlV) or logits_BlV.dtype != torch.float32:
        return None
    from varbench.model import triton_drawing

    return triton_drawing.drawn(logits_BlV, uniforms_Bl, top_k=top_k, top_p=top_p)
