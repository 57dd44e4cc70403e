"""What no honest row shows: every finding makes a row invalid, and says both numbers and what to do next.

The process that a plugin runs in may say anything. What is judged here is what others saw of it, and whether it fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from varbench.base import stats
from varbench.measure.honesty import OF_ITS_NUMBER
from varbench.measure.overseer import Oversight
from varbench.measure.speed import Pair, SpeedRound
from varbench.plan.cost import PlanWork, least, work
from varbench.plan.decided import wrong_taking
from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.plan.widths import at_least
from varbench.record import Score
from varbench.record.options import FEWEST_ROUNDS
from varbench.rows import FULL
from varbench.run.findings import Findings
from varbench.run.prepare import RowInRun, Run

SURE = 0.001
"""Of a thousand honest rows one may look so by chance."""

UNLIKE = 1e-4
"""Images that were timed differ from those that were scored where chance makes such a difference less often."""

SLOWER = 0.05
"""The full model beside a row may take longer than alone by this share."""

SLOWER_ONCE = 0.25
"""And by this where processes were too few to know how much luck differs between them."""

ASIDE = 0.1
"""Share of a call's time that may lie outside of what the process states, beyond what the full model's calls have there."""

AT_LEAST = 0.02
"""Seconds of a call that need no explanation."""

IDLE = 0.05
"""A process that waits for a question may use this share of the processor time of its calls."""

UNEXPLAINED = 1.2
"""A gain may be larger than the largest saving of work by this factor: smaller things fit a cache better."""

LOWER_TYPE = 16
"""A product in a smaller type may be so many times as fast: an H100 states 14.8 for bfloat16 beside float32."""

REPEATED, COPIED, UNDECODED = 0.01, 0.05, 0.05
"""Shares of images, or of pixels, that may be so by chance."""

CUT_OFF = 0.25
"""Levels of 255 that a row's pixels may lie below what its tokens decode to, on average: to cut off costs half a level."""

OTHER_ORDER = 0.5
"""Of the share of right classes in the order that fits best, this part at least is right in the order that was asked for."""

COUNTED = 0.05
"""Stated work and counted FLOPs may differ by this share."""

NEEDED = 0.5
"""Of the bytes that a plan needs at its peak, this share must have been seen: what is transient is estimated."""

WITHIN = "do all that a call takes within it, and be done when it answers"
ALIKE = "make images that are timed as those that are scored"
OTHER_REFERENCE = "give images that the method has not seen by --reference"


class Odd(NamedTuple):
    what: str
    then: str
    """What to do next."""


def reasons(run: Run, row: RowInRun, found: Findings, floors: dict[str, Score]) -> Iterator[str]:
    """Why a row cannot be believed, of all that is known of it."""
    for odd in _oddities(run, row, found, floors):
        yield f"{odd.what}; {odd.then}"


def _oddities(run: Run, row: RowInRun, found: Findings, floors: dict[str, Score]) -> Iterator[Odd]:
    rounds = [found.speed[number] for number in sorted(found.speed)]
    seen = [one.oversight for one in rounds if one.oversight is not None]
    yield from _clocks(rounds, seen)
    yield from _denominator(seen)
    yield from _likeness(found, seen, compiled=run.options.compile != "off")
    yield from _images(run, row, found, floors)
    yield from _gain(run, row, rounds)
    yield from _memory(run, row, found)
    yield from _stated_work(found)


def _clocks(rounds: Sequence[SpeedRound], seen: Sequence[Oversight]) -> Iterator[Odd]:
    laps = [lap for one in seen for lap in one.laps]
    if unsound := sum(not lap.sound for lap in laps):
        yield Odd(
            f"{unsound} of {len(laps)} timed calls state times that do not fit together, or do not lie within the call as it "
            "was seen from outside",
            "leave the process's clock as it is",
        )
    if laps:
        stated, actual = stats.median([lap.stated for lap in laps]), stats.median([lap.seen for lap in laps])
        aside = stats.median([lap.seen - lap.stated for lap in laps])
        usual = stats.median([one.beside for one in seen if one.beside is not None] or [0.0])
        if aside - usual > max(ASIDE * actual, AT_LEAST) or aside > max(actual / 2, 10 * AT_LEAST):
            yield Odd(
                f"its process states {stated:.3f} s a call, and {actual:.3f} s passed between question and answer",
                WITHIN,
            )
    told = [one for one in seen if one.busy_between is not None]
    between = sum(one.busy_between or 0.0 for one in told)
    within = sum(one.busy_within or 0.0 for one in told)
    if between > IDLE * within and between > 0.5:
        yield Odd(
            f"its process used {between:.1f} s of processor time between calls, when nothing was asked of it, and "
            f"{within:.1f} s in them",
            WITHIN,
        )
    yield from _elsewhere([pair for one in rounds for pair in one.throughput])


def _elsewhere(pairs: Sequence[Pair]) -> Iterator[Odd]:
    """Time that a row's network does not take must not come back beside the network, in sampler and decoder."""
    gains, moved, full = [], [], []
    for pair in pairs:
        if pair.full is None:
            continue
        own, other = pair.row.times, pair.full.times
        if own.transformer is None or other.transformer is None:
            continue
        full.append(other.end_to_end)
        gains.append(other.transformer - own.transformer)
        moved.append(gains[-1] - (other.end_to_end - own.end_to_end))
    if (
        len(moved) > 2
        and stats.median(gains) > 0
        and stats.surely_above(moved, ASIDE * stats.median(full), chance=SURE)
    ):
        yield Odd(
            f"its network takes {stats.median(gains):.3f} s less than the full model's, and the whole call only "
            f"{stats.median(gains) - stats.median(moved):.3f} s less",
            "do the network's work in its steps, not beside them",
        )


def _denominator(seen: Sequence[Oversight]) -> Iterator[Odd]:
    """The full model beside the row, against one in a process that holds no other plugin."""
    rounds = [[math.log(ours / alone) for ours, alone in one.plain] for one in seen if one.plain]
    many = len(rounds) >= FEWEST_ROUNDS
    logs = [stats.median(some) for some in rounds] if many else [log for some in rounds for log in some]
    most = SLOWER if many else SLOWER_ONCE
    if len(logs) > 2 and stats.median(logs) > math.log1p(most) and stats.surely_above(logs, 0.0, chance=SURE):
        beside, alone = (stats.median([pair[place] for one in seen for pair in one.plain]) for place in (0, 1))
        yield Odd(
            f"the full model takes {beside:.3f} s in the row's process, and {alone:.3f} s in one without the plugins: what the "
            "speedup is against was slowed",
            "let the plugin leave nothing running or patched, and measure again",
        )


def _likeness(found: Findings, seen: Sequence[Oversight], *, compiled: bool) -> Iterator[Odd]:
    """Images among the timed calls are those that were scored, and the timed ones look like them."""
    likenesses = [one.likeness for one in seen if one.likeness is not None]
    batches = found.seen.batches if found.seen else ()
    for one in likenesses:
        scored = batches[one.batch] if one.batch < len(batches) else one.images_sha256
        if scored != one.images_sha256 and not compiled:  # a compiler may choose other kernels in another process
            yield Odd(
                f"images {scored[:12]} were scored, and {one.images_sha256[:12]} came out where the same ones were asked for "
                "among timed calls",
                ALIKE,
            )
            break
    chances = [one.chance for one in likenesses if one.chance is not None]
    if chances and (together := stats.combined_chance(chances)) < UNLIKE:
        yield Odd(
            "images that were timed do not look like those that were scored: chance makes such a difference once in "
            f"{1 / together:,.0f} times",
            ALIKE,
        )


def _images(run: Run, row: RowInRun, found: Findings, floors: dict[str, Score]) -> Iterator[Odd]:
    if found.seen is None:
        return
    scored = found.seen.scored
    odd, count = scored.oddities, run.options.images
    if odd.repeated > REPEATED * count:
        yield Odd(f"{odd.repeated} of {count} images repeat another one's pixels", OF_ITS_NUMBER)
    if odd.copied is not None and odd.copied > COPIED:
        yield Odd(
            f"{odd.copied:.0%} of its images lie nearer to a reference image than reference images lie to each other",
            OTHER_REFERENCE,
        )
    if odd.undecoded is not None and odd.undecoded > UNDECODED:
        yield Odd(
            f"{odd.undecoded:.0%} of the pixels are not what its tokens decode to",
            "hand over the images of these tokens, decoded by the model's own tokenizer",
        )
    if odd.darker is not None and odd.darker > CUT_OFF:
        yield Odd(
            f"its pixels lie {odd.darker:.2f} levels below what its tokens decode to: bytes were cut off, not rounded",
            "hand over floats, or round: (255 * images).round()",
        )
    if odd.order is not None and odd.order.right < OTHER_ORDER * odd.order.reordered and odd.order.reordered > 0.5:
        yield Odd(
            f"{odd.order.right:.0%} of its images show the class that was asked for, and {odd.order.reordered:.0%} would if "
            f"classes stood in another order: what is asked for as class {odd.order.asked} is class {odd.order.shown}",
            "number the method's classes as the model's data does, by the sorted names of its folders",
        )
    score, floor = scored.quality.scores[0] if scored.quality else None, floors.get("real")
    if score is not None and floor is not None and beats_real_images(score, floor):
        yield Odd(
            f"{score.name} is {score.value:.3g}, at most {score.high:.3g}, and other real images have {floor.value:.3g}, at "
            f"least {floor.low:.3g}",
            OTHER_REFERENCE,
        )
    full = run.rows[FULL]
    if scored.distance and scored.distance.equal_tokens == 1 and row.plan is not None and full.plan is not None:
        own, other = _layer_tokens(row), _layer_tokens(full)
        if own < other:
            yield Odd(
                f"all tokens equal the full model's, though it computes {own:,} layers x tokens and the full model {other:,}",
                f"let what runs be its plan, which `varbench plan {row.name}` shows",
            )


def beats_real_images(score: Score, floor: Score) -> bool:
    """By the whole of both intervals."""
    return score.high is not None and floor.low is not None and score.high < floor.low


def _layer_tokens(row: RowInRun) -> int:
    assert row.plan is not None
    return sum(
        step.branches * (call.attention.tokens + call.ffn.tokens) for step in row.plan.steps for call in step.calls
    )


def _gain(run: Run, row: RowInRun, rounds: Sequence[SpeedRound]) -> Iterator[Odd]:
    """A row that is faster by more than it saves has done something that its plan does not say."""
    full = run.rows[FULL]
    if row.plan is None or full.plan is None or row.resolved.accounting != full.resolved.accounting:
        return
    if len(rounds) < FEWEST_ROUNDS:
        return  # too few rounds to say so of anybody
    for regime, batch in (("throughput", run.options.batch), ("latency", 1)):
        pairs = [one.throughput if regime == "throughput" else one.latency for one in rounds]
        times = [
            [(pair.full.times.transformer, pair.row.times.transformer) for pair in some if pair.full is not None]
            for some in pairs
        ]
        known = [[(one, other) for one, other in some if one and other] for some in times]
        if not known or not all(known):
            continue
        gain = stats.paired_ratio(
            [[one for one, _ in some] for some in known], [[other for _, other in some] for some in known]
        )
        own, other = (
            least(plan, batch=batch, dtype=run.options.dtype, device=run.options.device)
            for plan in (row.plan, full.plan)
        )
        calls = [fewest_calls(plan) for plan in (row.plan, full.plan)]
        saved = explained(own, other, calls=(calls[0], calls[1]))
        if gain.low > saved * UNEXPLAINED:
            yield Odd(
                f"{regime}: {gain.value:.2f} times as fast as the full model, at least {gain.low:.2f}, and it saves no more "
                f"than {saved:.2f} times of FLOPs, bytes or layer calls",
                f"let what is left out be in its plan, which `varbench plan {row.name}` shows",
            )


def fewest_calls(plan: Plan) -> int:
    """Layer calls on the shortest way."""
    if plan.decision is None:
        return sum(len(step.calls) for step in plan.steps)
    before = plan.steps[: plan.decision.after + 1]
    return min(sum(len(step.calls) for step in (*before, *way.steps)) for way in plan.decision.ways)


def explained(own: PlanWork, full: PlanWork, *, calls: tuple[int, int]) -> float:
    """The largest saving: whatever a call's time is made of, it cannot have fallen by more."""
    saved = max(
        full.transformer_flops / own.transformer_flops,
        sum(step.bytes_moved for step in full.steps) / sum(step.bytes_moved for step in own.steps),
        calls[1] / calls[0],
    )
    kinds = {kind for step in own.steps for kind, _ in step.other_types}
    return saved * (LOWER_TYPE if any(ITEM[kind] < ITEM[own.dtype] for kind in kinds) else 1)


def _memory(run: Run, row: RowInRun, found: Findings) -> Iterator[Odd]:
    looks = found.looks
    if looks is None or row.plan is None or looks.peaks.allocated is None:
        return
    taken = looks.trace.taken if looks.trace else ()
    if wrong_taking(row.plan, taken, batch=looks.batch):
        return  # said where the trace is held against the plan
    fewest = at_least(row.plan)
    options = run.options
    planned = work(
        fewest, batch=looks.batch, dtype=options.dtype, device=options.device, taken=taken, filtered=options.filters
    )
    held = [0, *(step.state_after for step in planned.steps)]
    needed = max(before + step.activations for before, step in zip(held, planned.steps, strict=False))
    if (seen := looks.peaks.allocated - looks.peaks.weights) < NEEDED * needed:
        yield Odd(
            f"its peak is {seen:,} bytes beside the weights, and its plan needs about {needed:,}: something was freed meanwhile",
            "hold nothing beforehand that a call gives back",
        )


def _stated_work(found: Findings) -> Iterator[Odd]:
    products = found.looks.products if found.looks else None
    if products is None or products.stated is None:
        return
    if abs(products.counted - products.stated) > COUNTED * max(products.stated, 1.0):
        yield Odd(
            f"it states {products.stated / 1e9:.3f} GFLOPs a call of this batch, and {products.counted / 1e9:.3f} were counted",
            "state in `Generator.work` what it computes",
        )
