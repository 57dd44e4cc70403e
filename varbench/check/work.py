"""Promises about work and time: what the plan says is what is computed, and nothing is faster than its work allows."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import process_time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from varbench.check.subject import LABELS, SEED, RowUnderTest
from varbench.plan import cost
from varbench.plan.trace import differences, foreseen

FLOPS_AGREE = 0.01
SUSPICIOUS = 0.6
"""A generation that takes a smaller share of the time of an equal amount of work was not computed."""
ROUNDS = 4
MOST = 5
"""Differences from a plan that are worth reading."""


def trace_equals_plan(subject: RowUnderTest) -> Iterator[str]:
    """What the engine is seen to compute, read, keep and hold is what the plan says, step by step and byte by byte."""
    planned = foreseen(subject.plan, batch=len(LABELS), dtype="float32")
    yield from itertools.islice(differences(planned, subject.first.trace), MOST)


def measured_flops_equal_plan(subject: RowUnderTest) -> Iterator[str]:
    """FLOPs that torch counts while images are made are those that the plan says, within 1 %."""
    _ = subject.first
    # The fused CPU kernel is not among those that torch's counter knows; the plain form is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        subject.generate()
    planned = cost.work(subject.plan, batch=len(LABELS), dtype="float32").flops
    measured = counter.get_total_flops()
    if abs(measured - planned) > FLOPS_AGREE * planned:
        yield f"{measured / 1e6:.2f} MFLOPs were counted, and the plan says {planned / 1e6:.2f} ({measured / planned - 1:+.1%})"


def products_in_type(subject: RowUnderTest) -> Iterator[str]:
    """Matrix products and convolutions are computed in the type that was asked for, or that a transform declares: speed does
    not come from fewer bits."""
    _ = subject.first
    with Products() as products:
        subject.generate()
    declared = {change.compute_type for transform in subject.plan.transforms for _, change in transform.changes}
    yield from products.others(torch.float32, *(getattr(torch, kind) for kind in declared if kind))


class Products(TorchDispatchMode):
    """Counts matrix products and convolutions by the type of what they multiply."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._types: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _PRODUCTS:
            # Truth values mask, and are no factors.
            self._types.update(t.dtype for t in args if isinstance(t, torch.Tensor) and t.dtype != torch.bool)
        return func(*args, **(kwargs or {}))

    def others(self, asked: torch.dtype, *declared: torch.dtype) -> Iterator[str]:
        for kind, count in self._types.items():
            if kind not in (asked, *declared):
                yield f"{count} factors of products are {kind}, and {asked} was asked for"


_aten = torch.ops.aten
_PRODUCTS = frozenset((*flop_registry, _aten.linear, _aten.matmul, _aten.conv2d, _aten.scaled_dot_product_attention))
"""What torch's own FLOP counter knows, and what it takes apart into that."""


def work_falls_as_knob_tightens(subjects: Sequence[RowUnderTest]) -> Iterator[str]:
    """Along the points of a curve, FLOPs fall, or where they are equal the bytes of state or of weights do, in one direction."""
    for family in _families(subjects):
        works = [(cost.work(s.plan, batch=1, dtype="float32"), s) for s in family]
        amounts = [
            (work.flops, work.state_peak, sum(step.state_peak for step in work.steps), work.weight_bytes)
            for work, _ in works
        ]
        names = [subject.row.name for subject in family]
        if len(family) < 2:
            continue
        if amounts[0] == amounts[-1]:
            yield f"{names[0]} and {names[-1]} do the same work: {_amount(amounts[0])} each"
            continue
        if amounts[0] < amounts[-1]:
            works, amounts, names = works[::-1], amounts[::-1], names[::-1]
        for (looser, tighter), (first, second), pair in zip(
            itertools.pairwise(amounts), itertools.pairwise(works), itertools.pairwise(names), strict=True
        ):
            same_plan = first[1].plan.digest == second[1].plan.digest
            if tighter > looser or (tighter == looser and not same_plan):
                yield f"{pair[1]} should do less than {pair[0]}, but does {_amount(tighter)} after {_amount(looser)}"


def _families(subjects: Sequence[RowUnderTest]) -> Iterator[list[RowUnderTest]]:
    """Rows that differ in one plugin's point alone, and in that only by a number, in the number's order; points
    without a number in the order of the settings."""
    families: dict[object, list[tuple[list[int], RowUnderTest]]] = {}
    for subject in subjects:
        (setting,) = subject.row.settings if len(subject.row.settings) == 1 else (None,)
        if setting is None or setting.point is None:
            continue
        shape = re.sub(r"[0-9]+", "#", setting.point) if re.search(r"[0-9]", setting.point) else ""
        parameters = tuple(sorted(setting.parameters.items()))
        numbers = [int(number) for number in re.findall(r"[0-9]+", setting.point)]
        families.setdefault((setting.plugin, setting.recipe, parameters, shape), []).append((numbers, subject))
    for family in families.values():
        yield [subject for _, subject in sorted(family, key=lambda entry: entry[0])]


def _amount(amounts: tuple[int, int, int, int]) -> str:
    return f"{amounts[0] / 1e6:.2f} MFLOPs, {amounts[1]} bytes of state at its peak and {amounts[3]} of weights"


def no_speedup_without_less_work(subject: RowUnderTest) -> Iterator[str]:
    """A row is not faster than its own plan executed with picks that cost nothing: what is saved stands in the plan."""
    seeds = itertools.count(SEED + 100)
    own = _timer(lambda: subject.generate(seed=next(seeds)))
    plain = _timer(lambda: subject.generate(subject.plain, seed=next(seeds)))
    fastest_own, fastest_plain = _interleaved(own, plain)
    if fastest_own < SUSPICIOUS * fastest_plain:
        # Once more, for a machine that was busy with something else.
        again = _interleaved(own, plain)
        fastest_own, fastest_plain = min(fastest_own, again[0]), min(fastest_plain, again[1])
        if fastest_own < SUSPICIOUS * fastest_plain:
            yield (
                f"{1000 * fastest_own:.1f} ms for what takes {1000 * fastest_plain:.1f} ms when the same plan is executed "
                "plainly: the speed does not come from less work"
            )


def repeat_as_slow_as_first(subject: RowUnderTest) -> Iterator[str]:
    """The same labels and seed again take about as long as new ones: an answer that is looked up is no measurement."""
    _ = subject.first
    yield from faster_repeat(lambda seed: subject.generate(seed=seed))


def faster_repeat(generate: Callable[[int], object]) -> Iterator[str]:
    """Whether the same seed is answered faster than new ones."""
    seeds = itertools.count(SEED + 200)
    new = _timer(lambda: generate(next(seeds)))
    same = _timer(lambda: generate(SEED))

    def repeated() -> float:
        # Right before, for one who remembers only the last.
        generate(SEED)
        return same()

    fastest_new, fastest_repeat = _interleaved(new, repeated)
    if fastest_repeat < SUSPICIOUS * fastest_new:
        again = _interleaved(new, repeated)
        fastest_new, fastest_repeat = min(fastest_new, again[0]), min(fastest_repeat, again[1])
        if fastest_repeat < SUSPICIOUS * fastest_new:
            yield f"a repeat takes {1000 * fastest_repeat:.1f} ms, the same work with a new seed {1000 * fastest_new:.1f} ms"


def _timer(work: Callable[[], object]) -> Callable[[], float]:
    # Processor time, which a busy machine stretches far less than the clock's.
    def seconds() -> float:
        began = process_time()
        work()
        return process_time() - began

    return seconds


def _interleaved(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """The fastest of each, taken by turns."""
    pairs = [(first(), second()) for _ in range(ROUNDS)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)
