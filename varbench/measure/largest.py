"""The largest batch that fits: on a CPU by counting, on a GPU by trying. Counting needs no torch."""

from __future__ import annotations

from collections.abc import Callable

from varbench.plan.cost import work
from varbench.plan.sizes import decoder_type
from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.record import LargestBatch

SHARE = {"cpu": 0.6, "cuda": 0.93}
"""Of free memory: a machine that runs out of it takes its other work along; on a card some goes to the driver and to gaps."""

CLOSE = 0.05
"""Bisection ends when the batch that fits and the one that does not are this near."""

_DECODER_MAPS = 4
"""Feature maps of full size that the decoder holds at once."""


def needed(plan: Plan, *, batch: int, dtype: str, device: str = "cpu") -> int:
    """By the plan's own bytes: weights, state, and the largest transient of a step or of the decoder."""
    counted = work(plan, batch=batch, dtype=dtype, device=device)
    steps = max(step.state_peak + step.activations for step in counted.steps)
    item = round(ITEM[decoder_type(dtype, device)])
    decoder = batch * plan.model.tokenizer.channels * plan.model.image_side**2 * item * _DECODER_MAPS
    return counted.weight_bytes + max(steps, decoder)


def usable(free: int, *, device: str) -> int:
    """What of a device's free memory a batch may take."""
    return round(free * SHARE[device.partition(":")[0]])


def largest_by_plan(plan: Plan, *, dtype: str, free: int, device: str = "cpu") -> LargestBatch:
    limit = usable(free, device=device)

    def fits(batch: int) -> bool:
        return needed(plan, batch=batch, dtype=dtype, device=device) <= limit

    return LargestBatch(batch=bisect(fits, close=0.0), how="plan", limit_bytes=limit)


def misfit(plan: Plan, *, batch: int, dtype: str, free: int, device: str) -> str | None:
    """What is said of a batch that does not fit; None of one that does."""
    wanted, limit = needed(plan, batch=batch, dtype=dtype, device=device), usable(free, device=device)
    if wanted <= limit:
        return None
    largest = largest_by_plan(plan, dtype=dtype, free=free, device=device).batch
    instead = f"the largest batch is {largest}" if largest else "not even one image fits"
    return f"needs about {_gib(wanted)} at batch {batch}, and of {_gib(free)} {_gib(limit)} can be had: {instead}"


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
