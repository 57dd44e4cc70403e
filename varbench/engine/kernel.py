"""How a call computes: torch chooses the attention kernel by device, type, shapes and mask, and products and convolutions
come in types, layouts and libraries. So all of it is looked up in a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from varbench.model.attention import WRITTEN_OUT, attention, is_written_out
from varbench.model.c_kernels import attention_name


@dataclass(frozen=True, kw_only=True)
class KernelSeen:
    name: str | None
    """Of attention, as torch names the operator; of several, all, with commas."""
    arithmetic: str
    """Types of products with weights and of convolutions, who computes the former, and how the latter lie; and whether what is beside
    them is computed in C."""
    missing: str | None = None
    """Why there is no name."""


def attention_kernel(call: Callable[[], object]) -> KernelSeen:
    """What a call's attentions, products and convolutions come down to. Slows the call, so it is a call of its own."""
    with _Operators() as operators, _WrittenOut(operators.kernels):
        call()
    arithmetic = "; ".join(f"{what} {', '.join(sorted(ways))}" for what, ways in operators.ways.items() if ways)
    if not operators.kernels:
        return KernelSeen(
            name=None,
            arithmetic=arithmetic,
            missing="no fused attention was seen: it is written out in matrix products",
        )
    return KernelSeen(name=", ".join(sorted(operators.kernels)), arithmetic=arithmetic)


_PRODUCTS = frozenset(("linear", "addmm", "mm", "_linear_pointwise", "_addmm_activation"))
_CONVOLUTIONS = frozenset(("conv2d", "convolution"))


class _WrittenOut(TorchFunctionMode):
    """Sees attention that no kernel of torch's does."""

    def __init__(self, kernels: set[str]) -> None:
        super().__init__()
        self._kernels = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is attention and is_written_out(*args[:2]):
            self._kernels.add(WRITTEN_OUT)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Sees torch's operators after it has chosen among the kernels of attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.kernels: set[str] = set()
        self.ways: dict[str, set[str]] = {"products": set(), "convolutions": set(), "passes": set()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep torch's compiler off it would be loaded first, which takes longer than the call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # Only within it is the choice made.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if func is torch.ops.varbench.attention.default:
            self.kernels.add(attention_name())
        elif namespace == "varbench":
            self.ways["passes"].add("in C")
        if namespace == "aten" and name.startswith("_scaled_dot_product_"):
            self.kernels.add(name.lstrip("_"))
        if name in _PRODUCTS:
            self.ways["products"].add(
                _type(args[1] if name == "_addmm_activation" else args[0])
                + (" by oneDNN" if namespace == "mkldnn" else "")
            )
        elif name in _CONVOLUTIONS:
            last = not all(tensor.is_contiguous() for tensor in args[:2])
            self.ways["convolutions"].add(_type(args[0]) + (" channels last" if last else ""))
        return func(*args, **(kwargs or {}))


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
