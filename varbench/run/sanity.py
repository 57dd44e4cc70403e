"""What no honest row shows: every finding makes a row invalid, and says both numbers and what to do next.

The process that a plugin runs in may say anything. What is judged here is what others saw of it, and whether it fits.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from varbench.base import stats
from varbench.measure.honesty import OF_ITS_NUMBER
from varbench.measure.overseer import Oversight
from varbench.measure.pairs import Call, Pair
from varbench.measure.speed import SpeedRound
from varbench.plan.cost import PlanWork, least, work
from varbench.plan.decided import wrong_taking
from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.plan.widths import at_least
from varbench.record import Score
from varbench.record.option_forms import as_arguments
from varbench.record.options import FEWEST_ROUNDS
from varbench.rows import FULL
from varbench.run import denominators
from varbench.run.findings import Findings
from varbench.run.prepare import RowInRun, Run

UNLIKE = 1e-4
"""Images that were timed differ from those that were scored where chance makes such a difference less often."""

REGIMES = ("throughput", "latency")

ASIDE = 0.1
"""Share of a call that may be explained by what it waited for a processor, at most."""

AT_LEAST = 0.001
"""Seconds of a call that may lie outside of what the process states, beyond what the full model's calls have there, and a
quarter more. The median over three processes beside a neighbour that comes and goes was above that by 0.2 ms at most."""

AT_LEAST_ONCE = 0.005
"""And so many where processes were fewer."""

UNKNOWN = 0.02
"""What those have there where there are none."""

ELSEWHERE = {"cpu": 0.05, "cuda": 0.2}
"""Share of a row's call by which the time beside its network may exceed the full model's: on a GPU one of them may be captured
and the other launched operator by operator."""

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


class Odd(NamedTuple):
    what: str
    then: str
    """What to do next."""


def reasons(
    run: Run, row: RowInRun, found: Findings, floors: dict[str, Score], others: Mapping[str, Findings] = {}
) -> Iterator[str]:
    """Why a row cannot be believed, of all that is known of it, and of the other rows of the run."""
    for odd in _oddities(run, row, found, floors, others):
        yield f"{odd.what}; {odd.then}"


def _oddities(
    run: Run, row: RowInRun, found: Findings, floors: dict[str, Score], others: Mapping[str, Findings]
) -> Iterator[Odd]:
    rounds = [found.speed[number] for number in sorted(found.speed)]
    seen = [one.oversight for one in rounds if one.oversight is not None]
    for regime in REGIMES:
        for odd in _of_regime(run, row, rounds, regime):
            yield odd._replace(what=f"{regime}: {odd.what}")
        if slowed := denominators.slowed(run, row, {**others, row.name: found}, regime):
            yield Odd(f"{regime}: {slowed}", "let the plugin leave nothing running or patched, and measure again")
    yield from _between(seen)
    yield from _likeness(found, seen, compiled=run.options.compile != "off")
    yield from _images(run, row, found, floors)
    yield from _gain(run, row, rounds)
    yield from _memory(run, row, found)
    yield from _stated_work(found)


def _of_regime(run: Run, row: RowInRun, rounds: Sequence[SpeedRound], regime: str) -> Iterator[Odd]:
    pairs = [pair for one in rounds for pair in one.pairs(regime)]
    least = AT_LEAST if len(rounds) >= FEWEST_ROUNDS else AT_LEAST_ONCE
    yield from _outside(pairs, [pair.row for one in rounds for pair in one.alone.get(regime, ())], least=least)
    previews = 0 if row.plan is None or row.plan.decision is None else len(row.plan.decision.previews)
    yield from _elsewhere(pairs, most=ELSEWHERE[run.options.device.partition(":")[0]], previews=previews)


def _middle(seconds: Sequence[float]) -> float:
    """The median; of an even number the lower one, since of two calls one may have met something."""
    return sorted(seconds)[(len(seconds) - 1) // 2]


def _outside(pairs: Sequence[Pair], alone: Sequence[Call], *, least: float) -> Iterator[Odd]:
    """What the judge's clock says of the process's."""
    calls, beside = [pair.row for pair in pairs], [pair.full for pair in pairs if pair.full is not None]
    if unsound := sum(not call.sound for call in (*calls, *beside)):
        yield Odd(
            f"{unsound} of {len(calls) + len(beside)} timed calls state times that do not fit together, or do not lie within the "
            "call as it was seen from outside",
            "leave the process's clock as it is",
        )
    if not calls:
        return
    stated = _middle([call.times.end_to_end for call in calls])
    actual = _middle([call.seen for call in calls])
    others = alone or beside
    usual = stats.median([call.outside for call in others]) if others else max(ASIDE * actual, UNKNOWN)
    waited = actual * min(ASIDE, stats.median([call.held_up for call in calls]))
    if _middle([call.outside for call in calls]) > usual + usual / 4 + least + waited:
        yield Odd(
            f"its process states {stated:.3f} s a call, and {actual:.3f} s passed between question and answer", WITHIN
        )


def _elsewhere(pairs: Sequence[Pair], *, most: float, previews: int) -> Iterator[Odd]:
    """Time that a row's network does not take must not come back beside the network, in sampler and decoder.

    What may lie there beyond what the full model has there: as many decodings as the row's decision looks at, what the call
    waited for, and a share of the row's own call, so that a fast row may hide no more than a slow one.
    """
    gains, moved, shares = [], [], []
    for pair in pairs:
        if pair.full is None:
            continue
        own, other = pair.row.times, pair.full.times
        if own.transformer is None or other.transformer is None or other.loop is None:
            continue
        gains.append(other.transformer - own.transformer)
        moved.append(gains[-1] - (other.end_to_end - own.end_to_end))
        waited = min(pair.row.held_up, ASIDE)
        shares.append((moved[-1] - previews * (other.with_decoder - other.loop)) / own.end_to_end - waited)
    if len(shares) > 2 and stats.median(gains) > 0 and stats.median(shares) > most:
        yield Odd(
            f"its network takes {stats.median(gains):.3f} s less than the full model's, and the whole call only "
            f"{stats.median(gains) - stats.median(moved):.3f} s less",
            "do the network's work in its steps, not beside them",
        )


def _between(seen: Sequence[Oversight]) -> Iterator[Odd]:
    told = [one for one in seen if one.busy_between is not None]
    between = sum(one.busy_between or 0.0 for one in told)
    within = sum(one.busy_within or 0.0 for one in told)
    if between > IDLE * within and between > 0.5:
        yield Odd(
            f"its process used {between:.1f} s of processor time between calls, when nothing was asked of it, and "
            f"{within:.1f} s in them",
            WITHIN,
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
            _other_reference(run, row),
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
            _other_reference(run, row),
        )
    full = run.rows[FULL]
    if scored.distance and scored.distance.equal_tokens == 1 and row.plan is not None and full.plan is not None:
        own, other = _layer_tokens(row), _layer_tokens(full)
        if own < other:
            yield Odd(
                f"all tokens equal the full model's, though it computes {own:,} layers x tokens and the full model {other:,}",
                f"let what runs be its plan, which `varbench plan {row.name}` shows",
            )


def _other_reference(run: Run, row: RowInRun) -> str:
    again = as_arguments(replace(run.options, reference="PATH"), row=row.name, study=row.resolved.study)
    return f"give images that the method has not seen by --reference: `{shlex.join(again)}`"


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
    """The largest saving: whatever a call's time is made of, it cannot have fallen by more. What of its products is done in a
    smaller type counts by what these take at best."""
    smaller = sum(flops for step in own.steps for kind, flops in step.other_types if ITEM[kind] < ITEM[own.dtype])
    return max(
        full.transformer_flops / (own.transformer_flops - smaller * (1 - 1 / LOWER_TYPE)),
        sum(step.bytes_moved for step in full.steps) / sum(step.bytes_moved for step in own.steps),
        calls[1] / calls[0],
    )


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
