"""How a product with weights is done: one place and one rule, the same for every method.

On a CPU and without gradients: oneDNN, called by its own operator. Of float32 it is as exact as MKL, and twice as fast on
processors that MKL was not made for; of bfloat16 it spares torch's setting up, which takes longer than a small product;
and it applies GELU to what it still has in its registers, in float32. Weights are read as they lie: no packed copies.
On a GPU, without gradients and in a 16-bit type: GELU as cuBLASLt applies it, likewise. Elsewhere torch chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from varbench.model import c_kernels
from varbench.model.fused import plain

_TYPES = {torch.float32: torch.backends.mkldnn.is_available()}
_TYPES[torch.bfloat16] = _TYPES[torch.float32] and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`x` (..., K) times the weights, plus the bias, of which the tanh form of GELU is taken where asked for."""
    found: Tensor
    if by_onednn(x):
        if gelu and c_kernels.activates(x):
            found = product(x, weight_NK, bias_N)
            c_kernels.gelu_(found)
            return found
        after: tuple[str, list[Any], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        # Of weights with gaps between their rows, as a part of a matrix has, it knows only a way that is hundreds of times slower.
        found = _onednn(x, weight_NK.contiguous(), bias_N, *after)
        return found
    if gelu and bias_N is not None and _by_cublaslt(x):
        flat = x.reshape(-1, x.shape[-1])
        activated: Tensor = _addmm_gelu(bias_N, flat, weight_NK.t(), use_gelu=True)
        return activated.view(*x.shape[:-1], -1)
    made = F.linear(x, weight_NK, bias_N)
    return F.gelu(made, approximate="tanh") if gelu else made


def grouped_product(x_PK: Tensor, weights_EKN: Tensor, ends_E: Tensor) -> Tensor:
    """Rows times a matrix of their own group: group E are the rows before `ends_E[E]` that are in none before. One call, and no host:
    by a kernel on a GPU of compute capability 9 or 10 in bfloat16, elsewhere one by one."""
    found: Tensor = F.grouped_mm(x_PK, weights_EKN, offs=ends_E)
    return found


def by_onednn(x: Tensor) -> bool:
    """The operator has no gradients, and a compiler fuses the plain one itself."""
    return x.device.type == "cpu" and not plain() and _TYPES.get(x.dtype, False)


def _by_cublaslt(x: Tensor) -> bool:
    return x.is_cuda and not plain() and x.dtype in (torch.bfloat16, torch.float16)


@contextmanager
def true_float32() -> Iterator[None]:
    """While it lasts, oneDNN, cuBLAS and cuDNN multiply and convolve float32 as float32, whatever a global setting allows them."""
    backends: Any = torch.backends
    parts = [backends.mkldnn.matmul, backends.mkldnn.conv]
    if torch.cuda.is_available():
        parts += [backends.cuda.matmul, backends.cudnn.conv]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.fp32_precision = was


_addmm_gelu: Any = torch._addmm_activation


@register_flop_formula(torch.ops.aten._addmm_activation)
def _gelu_flops(bias: torch.Size, x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """So that torch's counter knows the operator; it is handed shapes."""
    return 2 * x[0] * x[1] * weight[1]


@register_flop_formula(torch.ops.aten._grouped_mm)
def _grouped_flops(x: torch.Size, weights: torch.Size, *_: object, **__: object) -> int:
    """So that torch's counter knows the operator; it is handed shapes. All rows are in a group."""
    return 2 * x[0] * x[1] * weights[-1]


_onednn: Any = torch.ops.mkldnn._linear_pointwise if _TYPES[torch.float32] else None

if _onednn is not None:

    @register_flop_formula(_onednn)
    def _flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        """So that torch's counter knows the operator; it is handed shapes."""
        return 2 * x.numel() * weight[0]
