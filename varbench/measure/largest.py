"""The largest batch that fits: on a CPU by counting, on a GPU by trying. Counting needs no torch."""

from __future__ import annotations

from collections.abc import Callable

from varbench.plan.cost import work
from varbench.plan.steps import Plan
from varbench.record import LargestBatch

SHARE = 0.6
"""Of free host memory; a machine that runs out of it takes its other work along."""

CLOSE = 0.05
"""Bisection ends when the batch that fits and the one that does not are this near."""

_DECODER_MAPS = 4
"""Feature maps of full size that the decoder holds at once."""


def largest_by_plan(plan: Plan, *, dtype: str, free: int) -> LargestBatch:
    """By the plan's own bytes: weights, state, and the largest transient of a step or of the decoder."""
    limit = round(free * SHARE)

    def fits(batch: int) -> bool:
        counted = work(plan, batch=batch, dtype=dtype, device="cpu")
        steps = max(step.state_peak + step.activations for step in counted.steps)
        decoder = batch * plan.model.tokenizer.channels * plan.model.image_side**2 * 4 * _DECODER_MAPS
        return counted.weight_bytes + max(steps, decoder) <= limit

    return LargestBatch(batch=bisect(fits, close=0.0), how="plan", limit_bytes=limit)


def bisect(fits: Callable[[int], bool], *, close: float = CLOSE, most: int = 1 << 20) -> int:
    """The largest batch for which `fits` holds, to within `close`; 0 where not even one does."""
    if not fits(1):
        return 0
    good, bad = 1, 2
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    while bad - good > max(1, round(good * close)):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
