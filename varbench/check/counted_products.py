"""Matrix products and convolutions, seen as torch computes them: how many FLOPs, and in which types."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

_INT_MM = torch.ops.aten._int_mm

if _INT_MM not in flop_registry:

    @register_flop_formula(_INT_MM)
    def _flops(left: torch.Size, right: torch.Size, *_: object, **__: object) -> int:
        """Products of int8; formulas are handed shapes."""
        return 2 * left[0] * left[1] * right[1]


class Products(TorchDispatchMode):
    """Counts as torch's own FLOP counter does, by torch's own formulas, and also the types of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.flops = 0
        self.types: Counter[torch.dtype] = Counter()
        self._whole: set[Any] = set()
        """Operators that are not made of others."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and to keep torch's compiler off it is loaded first: seconds, and a million objects.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            if func not in self._whole:
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
                self._whole.add(func)
            return func(*args, **kwargs)
        # Truth values mask, and are no factors.
        self.types.update(t.dtype for t in args if isinstance(t, torch.Tensor) and t.dtype != torch.bool)
        result = func(*args, **kwargs)
        self.flops += formula(*args, **kwargs, out_val=result)
        return result
