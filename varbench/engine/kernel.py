"""Which attention kernel runs: torch chooses it by device, type, shapes and mask, so it is looked up in a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, kw_only=True)
class KernelSeen:
    name: str | None
    """As torch names the operator; of several, all, with commas."""
    missing: str | None = None
    """Why there is no name."""


def attention_kernel(call: Callable[[], object]) -> KernelSeen:
    """The kernels that a call's fused attentions come down to. Slows the call, so it is a call of its own."""
    with _Operators() as operators:
        call()
    if not operators.kernels:
        return KernelSeen(name=None, missing="no fused attention was seen: it is written out in matrix products")
    return KernelSeen(name=", ".join(sorted(operators.kernels)))


class _Operators(TorchDispatchMode):
    """Sees torch's operators after it has chosen among the kernels of attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # Only within it is the choice made.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "aten" and name.startswith("_scaled_dot_product_"):
            self.kernels.add(name.lstrip("_"))
        return func(*args, **(kwargs or {}))
