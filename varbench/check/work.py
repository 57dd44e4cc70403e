"""Promises about work and time: what the plan says is what is computed, and nothing is faster than its work allows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import process_time

import torch

from varbench.check import stand_ins
from varbench.check.subject import LABELS, SEED, PlannedRow, UnderTest
from varbench.engine.storage import storage_bytes
from varbench.engine.transforms import stored
from varbench.plan import cost
from varbench.plan.sizes import backbone_bytes
from varbench.plan.trace import otherwise_than_planned

FLOPS_AGREE = 0.01
BYTES_AGREE = 0.01
SUSPICIOUS = 0.6
"""A generation that takes a smaller share of the time of an equal amount of work was not computed."""
ROUNDS, MOST_ROUNDS = 2, 8
"""Rounds that are enough for an honest row, and rounds after which one that is always too fast is believed to be."""
MOST = 5
"""Differences from a plan that are worth reading."""


def trace_equals_plan(subject: PlannedRow) -> Iterator[str]:
    """What the engine is seen to compute, read, keep and hold is what the plan says, step by step and byte by byte."""
    trace = subject.with_logits.trace
    yield from itertools.islice(otherwise_than_planned(subject.plan, trace, batch=len(LABELS), dtype="float32"), MOST)


def measured_flops_equal_plan(subject: UnderTest) -> Iterator[str]:
    """FLOPs of the operators that run while images are made are those that the plan, or a generator, says, within 1 %."""
    stated, counted = subject.stated_flops, subject.products.flops
    if stated is not None and abs(counted - stated) > FLOPS_AGREE * max(stated, 1.0):
        more = f" ({counted / stated - 1:+.1%})" if stated else ""
        yield f"{counted / 1e6:.2f} MFLOPs were counted, and {stated / 1e6:.2f} are said{more}"


def products_in_type(subject: UnderTest) -> Iterator[str]:
    """Matrix products and convolutions are computed in the type that was asked for, or that a transform declares: speed does
    not come from fewer bits."""
    asked = torch.float32
    allowed = {asked, *(getattr(torch, kind) for kind in subject.declared_types)}
    for kind, count in subject.products.types.items():
        if kind not in allowed:
            yield f"{count} factors of products are {kind}, and {asked} was asked for"


def weights_equal_plan(subject: PlannedRow) -> Iterator[str]:
    """Bytes of weights, by storage, are those that the plan says, within 1 %: also where a transform replaced modules."""
    _ = subject.first
    for name, model in subject.pipe.backbones_of(subject.row).items():
        planned, held = backbone_bytes(subject.plan, name, "float32"), storage_bytes(stored(model))
        if abs(held - planned) > BYTES_AGREE * planned:
            yield f"{name} holds {held:,} bytes of weights, and the plan says {planned:,} ({held / planned - 1:+.1%})"


def work_falls_as_knob_tightens(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """Along the points of a curve, FLOPs fall, or where they are equal the bytes of state or of weights do, in one direction."""
    # What is decided by content may fall along a curve where its bounds do not.
    fixed = [subject for subject in subjects if isinstance(subject, PlannedRow) and not subject.plan.varies]
    for family in _families(fixed):
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


def _families(subjects: Sequence[PlannedRow]) -> Iterator[list[PlannedRow]]:
    """Rows that differ in one plugin's point alone, and in that only by a number, in the number's order; points
    without a number in the order of the settings."""
    families: dict[object, list[tuple[list[int], PlannedRow]]] = {}
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


def no_speedup_without_less_work(subject: PlannedRow) -> Iterator[str]:
    """A row is not faster than its own plan executed with picks that cost nothing: what is saved stands in the plan."""
    if not stand_ins.asked_while_it_runs(subject.row) or subject.plan.varies:
        return  # nothing of it is asked while it runs: both would be the same call; or their work could differ by content
    _ = subject.otherwise
    seeds = itertools.count(SEED + 100)
    own = _timer(lambda: subject.generate(seed=next(seeds)))
    plain = _timer(lambda: subject.generate(subject.plain, seed=next(seeds)))
    if faster := _too_fast(plain, own, known=((plain(), plain()), subject.seconds)):
        yield (
            f"{1000 * faster[0]:.1f} ms for what takes {1000 * faster[1]:.1f} ms when the same plan is executed plainly: "
            "the speed does not come from less work"
        )


def repeat_as_slow_as_first(subject: UnderTest) -> Iterator[str]:
    """The same labels and seed again take about as long as new ones: an answer that is looked up is no measurement."""
    _ = subject.otherwise
    fresh = tuple(subject.seconds)
    new, repeated = itertools.count(SEED + 200), itertools.count(SEED + 200)
    # What is repeated was asked right before, for one who remembers only the last.
    timed = _timer(lambda: subject.make(seed=next(new))), _timer(lambda: subject.make(seed=next(repeated)))
    again = _timer(lambda: subject.make(seed=SEED + 199))
    if faster := _too_fast(*timed, known=((*fresh, again()), (again(), again()))):
        yield f"a repeat takes {1000 * faster[0]:.1f} ms, the same work with a new seed {1000 * faster[1]:.1f} ms"


def _timer(work: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        began = process_time()
        work()
        return process_time() - began

    return seconds


def _too_fast(
    plain: Callable[[], float], own: Callable[[], float], *, known: tuple[Sequence[float], Sequence[float]]
) -> tuple[float, float] | None:
    """The fastest of each, taken by turns, where a row's own stays too fast for that of the same work. What is known of both
    clears most rows; its median, since among what is known of a liar some were lies too."""
    if min(known[1]) >= SUSPICIOUS * median(known[0]):
        return None
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MOST_ROUNDS:
        pairs.append((plain(), own()))
        its, fastest = map(min, zip(*pairs, strict=True))
        # Whoever is fast every other time is fast in two; whoever is slowed down by other processes is so not for long.
        if len(pairs) >= ROUNDS and fastest >= SUSPICIOUS * its:
            return None
    return fastest, its
