"""Checks that a row does what it says, run beside the measurements; each finding makes the row's record invalid."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from varbench.measure import memory
from varbench.measure.speed import Generation
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace, differences, foreseen

SMALL = 1 << 18
"""Bytes between steps that nobody has to account for."""


@dataclass(frozen=True)
class Globals:
    """State of the process that belongs to everyone."""

    values: dict[str, Any]

    def changed(self) -> list[str]:
        """Names of what is not as it was."""
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


def against_plan(plan: Plan, trace: Trace, *, batch: int, dtype: str) -> list[str]:
    """Where what was seen is not what was planned: layers, tokens, cache entries, and bytes of state."""
    return list(differences(foreseen(plan, batch=batch, dtype=dtype), trace))


def from_outside(made: Generation, *, batch: int, seed: int) -> list[str]:
    """What three equal or further calls show that the trace does not: chance, leaks, and state that is not declared."""
    first = memory.seen_from_outside(made, batch=batch, seed=seed)
    equal = memory.seen_from_outside(made, batch=batch, seed=seed)
    other = memory.seen_from_outside(made, batch=batch, seed=seed + 1)
    found = []
    if not np.array_equal(first.tokens, equal.tokens):
        share = float((first.tokens == equal.tokens).mean())
        found.append(f"the same call gave other tokens: {share:.1%} are equal")
    if (leaked := min(equal.left, other.left) - first.left) > 0:
        found.append(f"{leaked:,} bytes more live after further calls: something is not given back")
    if hidden := _undeclared(equal):
        found.append(hidden)
    return found


def _undeclared(seen: memory.Seen) -> str | None:
    """What lives between steps beyond what the plan has there: state, and what the loop needs beside it."""
    worst, step = max(
        (live - planned, step)
        for step, (live, planned) in enumerate(zip(seen.after_steps, seen.planned, strict=True), 1)
    )
    if worst <= SMALL:
        return None
    return f"{worst:,} bytes live after step {step} that the plan does not have"
