"""The largest batch that fits: on a CPU by counting, on a GPU by trying. Counting needs no torch."""

from __future__ import annotations

from collections.abc import Callable

from varbench.plan.cost import PlanWork, work
from varbench.plan.hardware import usable
from varbench.plan.sizes import decoder_type
from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.record import LargestBatch

CLOSE = 0.05
"""Bisection ends when the batch that fits and the one that does not are this near."""

_DECODER_MAPS = 4
"""Feature maps of full size that the decoder holds at once."""


def needed(plan: Plan, *, batch: int, dtype: str, device: str = "cpu") -> int:
    """By the plan's own bytes: weights, state, and the largest transient of a step or of the decoder."""
    return needed_by(work(plan, batch=batch, dtype=dtype, device=device), plan=plan, device=device)


def needed_by(counted: PlanWork, *, plan: Plan, device: str) -> int:
    """Where the work is counted already, for such a device."""
    steps = max(step.state_peak + step.activations for step in counted.steps)
    item = round(ITEM[decoder_type(counted.dtype, device)])
    decoder = counted.batch * plan.model.tokenizer.channels * plan.model.image_side**2 * item * _DECODER_MAPS
    return counted.weight_bytes + max(steps, decoder)


def largest_by_plan(plan: Plan, *, dtype: str, free: int, device: str = "cpu") -> LargestBatch:
    limit = usable(free, device=device)

    def fits(batch: int) -> bool:
        return needed(plan, batch=batch, dtype=dtype, device=device) <= limit

    return LargestBatch(batch=bisect(fits, close=0.0), how="plan", limit_bytes=limit)


def misfit(plan: Plan, *, batch: int, dtype: str, free: int, device: str) -> str | None:
    """What is said of a batch that does not fit; None of one that does."""
    counted = work(plan, batch=batch, dtype=dtype, device=device)
    return misfit_by(counted, plan=plan, free=free, device=device)


def misfit_by(counted: PlanWork, *, plan: Plan, free: int, device: str) -> str | None:
    """Where the work is counted already, for such a device."""
    wanted, limit = needed_by(counted, plan=plan, device=device), usable(free, device=device)
    if wanted <= limit:
        return None
    largest = largest_by_plan(plan, dtype=counted.dtype, free=free, device=device).batch
    instead = f"the largest batch is {largest}" if largest else "not even one image fits"
    return (
        f"needs about {_gib(wanted)} at batch {counted.batch}, and of {_gib(free)} {_gib(limit)} can be had: {instead}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"


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
