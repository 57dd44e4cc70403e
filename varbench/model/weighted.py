"""How a product with weights is done: one place and one rule, the same for every method.

On a CPU and without gradients: oneDNN, called by its own operator. Of float32 it is as exact as MKL, and twice as fast on
processors that MKL was not made for; of bfloat16 it spares torch's setting up, which takes longer than a small product;
and it applies GELU to what it still has in its registers, in float32. Weights are read as they lie: no packed copies.
Elsewhere torch chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_TYPES = {torch.float32: torch.backends.mkldnn.is_available()}
_TYPES[torch.bfloat16] = _TYPES[torch.float32] and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`x` (..., K) times the weights, plus the bias, of which the tanh form of GELU is taken where asked for."""
    if by_onednn(x):
        after: tuple[str, list[Any], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        found: Tensor = _onednn(x, weight_NK, bias_N, *after)
        return found
    made = F.linear(x, weight_NK, bias_N)
    return F.gelu(made, approximate="tanh") if gelu else made


def by_onednn(x: Tensor) -> bool:
    """The operator has no gradients, and a compiler fuses the plain one itself."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not plain and _TYPES.get(x.dtype, False)


@contextmanager
def true_float32() -> Iterator[None]:
    """While it lasts, oneDNN multiplies and convolves float32 as float32, whatever a global setting allows it."""
    onednn: Any = torch.backends.mkldnn
    parts = (onednn.matmul, onednn.conv)
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.fp32_precision = was


_onednn: Any = torch.ops.mkldnn._linear_pointwise if _TYPES[torch.float32] else None

if _onednn is not None:

    @register_flop_formula(_onednn)
    def _flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        """So that torch's counter knows the operator; it is handed shapes."""
        return 2 * x.numel() * weight[0]
