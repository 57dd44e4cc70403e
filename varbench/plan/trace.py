"""What a generation really did, in the plan's own words, read off the tensors that were computed and held."""

from __future__ import annotations

from dataclasses import dataclass

from varbench.plan.steps import Step


@dataclass(frozen=True, kw_only=True)
class Trace:
    steps: tuple[Step, ...]
    """For a static plan these equal the plan's."""
    state_after: tuple[int, ...]
    """Bytes of caches and remembered outputs after each step."""
    state_peak: tuple[int, ...]
    """Largest bytes of the same within each step."""
    kernel: str
    """Attention kernel that ran."""
