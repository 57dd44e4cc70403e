"""Promises about results: what must be equal to what, and how nearly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from varbench import rows
from varbench.check import sent_ways, stand_ins
from varbench.check.subject import ANOTHER_SEED, LABELS, SAMPLING, SEED, PlannedRow, UnderTest
from varbench.engine.pipeline import Output
from varbench.engine.subjects import Answer
from varbench.engine.teacher import teacher_plan
from varbench.errors import PlanError
from varbench.measure.process_state import restored
from varbench.plan.steps import Plan
from varbench.policies import Stage, TrainingSchedule, TrainStep
from varbench.rows.grammar import Row
from varbench.rows.parts import settings_of

EQUAL = 0.999
"""Share of tokens, or of pixels where there are none, that must be equal at any batch size, in float32."""
PARTS_OF_BATCH = ((0, 1), (1, 4))
SAME_PIXEL = 1 / 255
"""Pixels that differ by less are the same."""


def picks_are_places(subject: PlannedRow) -> Iterator[str]:
    """`pick`, `gate` and `route` give as many places or experts as were asked for, each once and within range; `fill` and
    `estimate` give every token."""
    if stand_ins.asked_while_it_runs(subject.row):
        yield from _few(subject.read_again[1].places)


def inputs_untouched(subject: PlannedRow) -> Iterator[str]:
    """`pick`, `fill`, `route`, `gate` and `estimate` only look at what they are given."""
    if stand_ins.asked_while_it_runs(subject.row) or subject.plan.decision is not None:
        yield from _few(subject.read_again[1].inputs)


def kept_is_what_is_read(subject: PlannedRow) -> Iterator[str]:
    """Keys and values that attention reads again are, number for number, those that were picked or planned to stay; and a token
    attends to its own scale and to coarser ones."""
    yield from _few(subject.read_again[0].caches.wrong)


def attention_told_was_paid(subject: PlannedRow) -> Iterator[str]:
    """The attention that `pick` is told is what the observed queries paid to each entry, by a computation of its own."""
    yield from _few(subject.read_again[0].caches.misled)


def picked_is_what_is_computed(subject: PlannedRow) -> Iterator[str]:
    """The tokens that were picked are those that are computed, and what is filled in, from what was remembered, goes on."""
    yield from _few(subject.read_again[0].tokens.wrong)


def neutral_equals_full(subject: PlannedRow) -> Iterator[str]:
    """At its neutral end a method gives the full model's images bit for bit, also by way of its own pick and fill."""
    full = stand_ins.full_model(subject.row)
    if subject.plan.digest == subject.compile(full).digest:
        yield from _differences(subject.with_logits, subject.full, "its plan is the full model's, but")
    for neutral in _neutral_rows(subject):
        # Settings of one plugin have their neutral ends in common.
        if (key := (neutral.name, id(subject.pipe))) not in subject.bench.neutral:
            made = subject.generate(neutral, return_logits=True)
            differences = list(_differences(made, subject.full, f"{neutral.name} is said to be neutral, but"))
            subject.bench.neutral[key] = differences
        yield from subject.bench.neutral[key]
    if subject.plan.decision is not None:
        undecided = subject.generate(sent_ways.undecided(subject.row), return_logits=True)
        gone_on = subject.generate(subject.going_on, return_logits=True)
        yield from _differences(gone_on, undecided, "where all images are decided to go on as before,")
    if stand_ins.picks(subject.row):
        every = subject.generate(stand_ins.forced(subject.going_on), return_logits=True)
        without = stand_ins.without_content(subject.row)
        same = subject.compile(without).digest == subject.compile(full).digest
        whole = subject.full if same else subject.generate(without, return_logits=True)
        yield from _differences(every, whole, "made to pick everything there is,")


def _neutral_rows(subject: PlannedRow) -> list[Row]:
    found: list[Row] = []
    for setting in subject.row.settings:
        for selection in settings_of(setting.plugin, subject.row.model, subject.bench.manager).neutral:
            found += subject.bench.expand(setting.plugin + selection)
    return found


def _differences(made: Output, full: Output, prefix: str) -> Iterator[str]:
    if not torch.equal(made.tokens, full.tokens):
        different = int((made.tokens != full.tokens).sum())
        yield f"{prefix} {different} of {full.tokens.numel()} tokens are not the full model's"
    elif made.logits is not None and full.logits is not None and not _same_numbers(made.logits, full.logits):
        apart = largest_difference(made.logits, full.logits)
        yield f"{prefix} logits differ from the full model's by up to {apart:.3g}; they must be bit-equal"
    elif not torch.equal(made.images, full.images):
        yield f"{prefix} images differ from the full model's by up to {largest_difference(made.images, full.images):.3g}"


def _same_numbers(first: Tensor, second: Tensor) -> bool:
    """Bit-equal, where a skipped scale's NaN equals NaN."""
    return torch.equal(first.nan_to_num(nan=-1.0), second.nan_to_num(nan=-1.0))


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Between two tensors; a skipped scale's NaN counts as none."""
    return float((first - second).abs().nan_to_num(0.0).max())


def deterministic(subject: UnderTest) -> Iterator[str]:
    """The same labels and seed give the same images, bit for bit."""
    if different := _unlike(subject.make(), subject.first):
        yield f"the same labels and seed gave others the second time: {different}"


def no_memoised_repeat(subject: UnderTest) -> Iterator[str]:
    """Results depend on labels and seed alone, not on what was made before: a repeat is computed again."""
    _ = subject.first
    if different := _unlike(subject.otherwise[ANOTHER_SEED], subject.anew[0]):
        yield f"results depend on what was made before: after importing the plugin anew, {different}"


def _unlike(one: Answer, other: Answer) -> str | None:
    """What differs between two answers that should be equal bit for bit."""
    if one.tokens is not None and other.tokens is not None and not torch.equal(one.tokens, other.tokens):
        return f"{int((one.tokens != other.tokens).sum())} of {one.tokens.numel()} tokens differ"
    if not torch.equal(one.images, other.images):
        return f"images differ by up to {largest_difference(one.images, other.images):.3g}"
    return None


def seeds_and_labels_matter(subject: UnderTest) -> Iterator[str]:
    """Another seed, another label or another image of the noise stream gives another image."""
    for what, other in subject.otherwise.items():
        pairs = enumerate(zip(other.images, subject.first.images, strict=True), 1)
        same = [number for number, (one, first) in pairs if torch.equal(one, first)]
        if same:
            yield f"{what} gave image {same[0]} of {len(LABELS)} unchanged"


def batch_invariance(subject: UnderTest) -> Iterator[str]:
    """An image is the same at any batch size and in any company: at least 99.9 % equal tokens in float32. Of products that a
    row declares in other types, logits of the same tokens are equal within rounding."""
    if isinstance(subject, PlannedRow) and subject.declared_types:
        together = subject.with_logits
        parts = [
            subject.generate(tokens=together.tokens[a:b], labels=LABELS[a:b], first_image=a, return_logits=True).logits
            for a, b in PARTS_OF_BATCH
        ]
        distance = largest_difference(torch.cat([part for part in parts if part is not None]), _logits(together))
        if not distance <= tolerance(subject.plan):
            yield f"made alone, logits of the same tokens differ by up to {distance:.3g} from those made {len(LABELS)} at once"
        return
    if isinstance(subject, PlannedRow) and subject.plan.decision is not None and subject.plan.decision.together:
        yield from _the_same_on_each_way(subject)
        return
    shares = [_share_alone(subject, subject.first, SEED)]
    if shares[0] < EQUAL:
        # One near tie can turn all later tokens of an image; it does not happen under two seeds.
        shares.append(_share_alone(subject, subject.make(seed=SEED + 1), SEED + 1))
        if max(shares) < EQUAL:
            what = "pixels" if subject.first.tokens is None else "tokens"
            yield (
                f"made alone, images share {100 * max(shares):.2f} % of their {what} with the same images made "
                f"{len(LABELS)} at once; at least {100 * EQUAL:.1f} % must be equal"
            )


def _the_same_on_each_way(subject: PlannedRow) -> Iterator[str]:
    """Which way a whole batch goes hangs on all of its images; what each becomes there does not."""
    assert subject.plan.decision is not None
    for way in range(len(subject.plan.decision.ways)):
        row = sent_ways.sent(subject.row, (way,))
        together = subject.generate(row).tokens
        parts = [subject.generate(row, labels=LABELS[a:b], first_image=a).tokens for a, b in PARTS_OF_BATCH]
        share = float((torch.cat(parts) == together).float().mean())
        if share < EQUAL:
            yield f"on way {way}, images made alone share {share:.2%} of their tokens with the same made {len(LABELS)} at once"


def _logits(made: Output) -> Tensor:
    assert made.logits is not None
    return made.logits


def _share_alone(subject: UnderTest, together: Answer, seed: int) -> float:
    parts = [subject.make(LABELS[a:b], first=a, seed=seed) for a, b in PARTS_OF_BATCH]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    if together.tokens is not None and tokens:
        return float((torch.cat(tokens) == together.tokens).float().mean())
    images = torch.cat([part.images for part in parts])
    return float(((images - together.images).abs() < SAME_PIXEL).float().mean())


def teacher_equals_cached(subject: PlannedRow) -> Iterator[str]:
    """Logits of the teacher-forced pass equal those of cached generation of the same tokens, before guidance."""
    plan = subject.plan
    # Of experts too, a near tie could fall either way; and what is read encoded has no one pass.
    if plan.asks or plan.skipped:
        return
    try:
        for name in dict.fromkeys(step.backbone for step in plan.steps):
            teacher_plan(plan, name)
    except PlanError:
        # It has no one pass, and is refused where it would be needed.
        return
    tokens = subject.with_logits.tokens
    cached = subject.generate(tokens=tokens, return_logits=True, cfg=0.0).logits
    teacher = subject.pipe.logits(tokens, LABELS, method=subject.row.name)
    assert cached is not None
    distance = largest_difference(cached, teacher)
    if not distance <= tolerance(plan):
        yield (
            f"teacher-forced logits differ from those of the cached generation by up to {distance:.3g}; "
            f"at most {tolerance(plan):.3g} comes from rounding"
        )


def tolerance(plan: Plan) -> float:
    """Largest difference of logits between two ways of computing the same: a type of few bits makes steps of last places."""
    changes = [change for transform in plan.transforms for _, change in transform.changes]
    kinds = {plan.cache_dtype, *(change.compute_type for change in changes)}
    return max({None: 1e-3, "float32": 1e-3, "float16": 0.1, "int8": 0.1}.get(kind, 1.0) for kind in kinds)


def images_in_range(subject: UnderTest) -> Iterator[str]:
    """Images are finite, within [0, 1], and as many and as large as were asked for."""
    images, side, count = subject.first.images, subject.row.model.image_side, len(LABELS)
    if type(images) is not Tensor:
        yield f"images are a {type(images).__module__}.{type(images).__name__}, which can put work off, not a plain torch.Tensor"
    elif tuple(images.shape) != (count, 3, side, side):
        yield f"images have shape {tuple(images.shape)}, not {(count, 3, side, side)}"
    elif not torch.isfinite(images).all():
        yield f"{int((~torch.isfinite(images)).sum())} pixels are NaN or infinite"
    elif images.min() < 0 or images.max() > 1:
        yield f"pixels reach from {float(images.min()):.3g} to {float(images.max()):.3g}; they must lie within 0 to 1"


def tokens_are_drawn_from_logits(subject: PlannedRow) -> Iterator[str]:
    """The tokens are those that an independent sampler draws from the returned logits with the protocol's noise."""
    out = subject.with_logits
    model = subject.row.model
    assert out.logits is not None
    for scale in range(model.scales):
        if scale in out.plan.skipped:
            continue
        span = slice(model.starts[scale], model.starts[scale + 1])
        drawn = (out.tokens[:, span] >= 0).all(dim=1)  # images that were decided to end before have none
        expected = _draws(out.logits[:, span].double().numpy(), scale, drawn.nonzero().flatten().tolist())
        wrong = int((expected != out.tokens[drawn, span].numpy()).sum())
        # A draw within rounding of the edge between two codes may fall either way.
        if wrong > 1:
            yield f"at {model.scale_name(scale)} {wrong} of {expected.size} tokens are not what the shared sampler draws"


def _draws(logits_BlV: np.ndarray, scale: int, images: Sequence[int]) -> np.ndarray:
    """The protocol's sampler for these images, written again without torch: top-k, top-p, then one counted uniform a token."""
    _, length, vocabulary = logits_BlV.shape
    codes = np.empty((len(images), length), dtype=np.int64)
    for at, image in enumerate(images):
        for place in range(length):
            row = logits_BlV[image, place].copy()
            row[row < np.sort(row)[-SAMPLING["top_k"]]] = -np.inf
            ascending = np.argsort(row, kind="stable")
            share = np.exp(row - row.max())
            tail = np.cumsum(share[ascending] / share.sum()) <= 1 - SAMPLING["top_p"]
            tail[-1] = False
            share[ascending[tail]] = 0
            cumulative = np.cumsum(share / share.sum())
            codes[at, place] = min(
                np.searchsorted(cumulative, _uniform(SEED, image, scale, place), "right"), vocabulary - 1
            )
    return codes


_WORD = (1 << 64) - 1


def _uniform(seed: int, image: int, scale: int, place: int) -> float:
    golden = 0x9E3779B97F4A7C15
    key = _mixed(_mixed((seed * golden + 1) & _WORD) + (image + 1) * golden)
    return (_mixed(key ^ _mixed((place + (scale << 32) + 1) * golden)) >> 40) * 2.0**-24


def _mixed(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def plan_stable(subject: PlannedRow) -> Iterator[str]:
    """Asked again, under other random states and after running, the policies give the same plan; running leaves it as it is."""
    before = subject.plan.to_json()
    ran = subject.pipe.compile(subject.row)[0]
    _ = subject.first
    if subject.plan.to_json() != before or ran.to_json() != before:
        yield "the plan was changed while it was executed"
    with restored():
        for attempt in range(1, 4):
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(attempt)
            digest = subject.compile().digest
            if digest != subject.plan.digest:
                yield f"compiled again, the plan is {digest[:12]} and not {subject.plan.digest[:12]}"
                break
    _, again = subject.anew
    if again != subject.plan.digest:
        yield f"imported again, the plan is {str(again)[:12]} and not {subject.plan.digest[:12]}"


SCHEDULED = 60
"""Optimiser steps that a schedule is asked about."""


def schedule_repeats(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """A training schedule is a function of step and random numbers alone, and names points that exist."""
    asked: set[tuple[str | None, str | None]] = set()
    for subject in subjects:
        row, schedule = subject.row, subject.row.schedule
        if schedule is None or (row.recipe_plugin, row.recipe) in asked:
            continue
        asked.add((row.recipe_plugin, row.recipe))
        schedule.check(SCHEDULED)
        for stage in schedule.stages():
            total = max(1, round(SCHEDULED * stage.share))
            first = scheduled(schedule, stage, total)
            for step in reversed(range(total)):
                again = schedule.at(stage, step, total, _uniforms(step))
                if again != first[step]:
                    yield f"{row.name}: asked again, step {step} of {stage.name} trains {again} and not {first[step]}"
                    break
            for number, step_ in enumerate(first):
                if step_.scale_weights is not None and len(step_.scale_weights) != row.model.scales:
                    yield (
                        f"{row.name}: step {number} of {stage.name} weighs {len(step_.scale_weights)} scales; there are "
                        f"{row.model.scales}"
                    )
                    break
            for point in {step_.point for step_ in first if step_.point is not None}:
                rows.at_point(row, point, manager=subject.bench.manager)


def scheduled(schedule: TrainingSchedule, stage: Stage, total: int) -> list[TrainStep]:
    return [schedule.at(stage, step, total, _uniforms(step)) for step in range(total)]


def _uniforms(step: int) -> Callable[[int], float]:
    return lambda number: _uniform(SEED, step, 0, number)


def _few(messages: list[str], most: int = 3) -> Iterator[str]:
    yield from messages[:most]
    if len(messages) > most:
        yield f"and {len(messages) - most} more like these"
