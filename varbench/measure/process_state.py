"""Global state of the process, such as torch's thread count: what a row changes of it is named, and restored."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Globals:
    """A snapshot of it."""

    values: dict[str, Any]

    def changed(self) -> list[str]:
        """Names of what has changed since."""
        now = global_state().values
        return [name for name, value in self.values.items() if not _equal(value, now[name])]

    def restore(self) -> None:
        """Puts everything back, so that the next row is not measured under another's settings."""
        values = self.values
        torch.set_default_dtype(values["torch default dtype"])
        torch.set_num_threads(values["torch threads"])
        torch.set_rng_state(values["torch random state"])
        np.random.set_state(values["numpy random state"])
        random.setstate(values["python random state"])
        torch.set_float32_matmul_precision(values["float32 matmul precision"])
        torch.backends.cudnn.benchmark = values["cudnn.benchmark"]
        torch.backends.cudnn.deterministic = values["cudnn.deterministic"]
        torch.backends.cudnn.allow_tf32 = values["cudnn.allow_tf32"]
        torch.use_deterministic_algorithms(values["deterministic algorithms"])
        torch.set_grad_enabled(values["gradients"])


def stir() -> None:
    """Other random numbers from now on: what a row draws from them it does not draw again."""
    seed = int.from_bytes(os.urandom(4), "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def global_state() -> Globals:
    return Globals(
        {
            "torch default dtype": torch.get_default_dtype(),
            "torch threads": torch.get_num_threads(),
            "torch random state": torch.get_rng_state(),
            "numpy random state": np.random.get_state(),
            "python random state": random.getstate(),
            "float32 matmul precision": torch.get_float32_matmul_precision(),
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "cudnn.deterministic": torch.backends.cudnn.deterministic,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "gradients": torch.is_grad_enabled(),
        }
    )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second))
    return bool(first == second)
