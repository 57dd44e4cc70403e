"""Promises about guidance: how far it moves logits, and what its unlabelled branch computes.

What is held against the engine here is the teacher-forced pass, run once for each branch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from varbench.check import sent_ways, stand_ins
from varbench.check.sameness import largest_difference, tolerance
from varbench.check.subject import LABELS, PlannedRow
from varbench.engine.teacher import TeacherPass, numbered
from varbench.engine.trained_layer import fused_attention
from varbench.errors import PlanError
from varbench.plan.steps import Plan
from varbench.rows.grammar import Row


def guided_as_planned(subject: PlannedRow) -> Iterator[str]:
    """Logits are drawn away from the unlabelled branch's as far as the plan says, at every scale."""
    if subject.row.policies.guidance is None:
        return
    tokens = subject.generate(subject.going_on).tokens.clamp(min=0)

    def drawn_away(row: Row) -> Tensor:
        guided, plain = (subject.generate(row, tokens=tokens, return_logits=True, cfg=cfg).logits for cfg in (1.0, 0.0))
        assert guided is not None and plain is not None
        return guided - plain

    row = subject.going_on
    own, whole, model = drawn_away(row), drawn_away(stand_ins.fully_guided(row)), row.model
    for step in subject.plan.steps:
        span = slice(model.starts[step.samples], model.starts[step.samples + 1])
        distance = largest_difference(own[:, span], step.strength * whole[:, span])
        if not distance <= tolerance(subject.plan) * max(1.0, step.strength):
            yield (
                f"at {model.scale_name(step.samples)} guidance moves logits otherwise than the planned share of "
                f"{step.strength:.3g} does, by up to {distance:.3g}"
            )


def unlabelled_equals_teacher(subject: PlannedRow) -> Iterator[str]:
    """Logits of the unlabelled branch equal those of a teacher-forced pass without a class, which goes on with the labelled
    branch's attention where the plan has one for both."""
    row = stand_ins.fully_guided(_nothing_picked(subject))
    plan = subject.compile(row)
    if plan.skipped or plan.cache_form is not None:
        return
    tokens = subject.generate(row).tokens
    unlabelled = subject.generate(
        row, tokens=tokens, return_logits=True, cfg=-1.0
    ).logits  # guided by as much away from it
    try:
        teacher = _without_a_class(subject, plan, row, tokens)
    except PlanError:
        return  # it has no one pass
    assert unlabelled is not None
    for step in plan.steps:
        span = slice(plan.model.starts[step.samples], plan.model.starts[step.samples + 1])
        distance = largest_difference(unlabelled[:, span], teacher[:, span])
        if not distance <= tolerance(plan):
            attention = "the labelled one's attention" if step.shares else "attention of its own"
            yield (
                f"at {plan.model.scale_name(step.samples)} logits of the unlabelled branch differ by up to {distance:.3g} from those "
                f"of a teacher-forced pass with {attention}; at most {tolerance(plan):.3g} comes from rounding"
            )


def _nothing_picked(subject: PlannedRow) -> Row:
    """The row, or what is left of it without what it chooses by content, which has no teacher-forced pass, or none that near
    ties could not turn."""
    if not subject.plan.picks:
        return subject.row
    row = stand_ins.without_content(subject.row) if stand_ins.picks(subject.row) else sent_ways.undecided(subject.row)
    return stand_ins.renamed(row, "nothing picked", replace(row.policies, width=None))


@torch.inference_mode()
def _without_a_class(subject: PlannedRow, plan: Plan, row: Row, tokens_BL: Tensor) -> Tensor:
    """Logits (B, L, V) of all scales."""
    features = subject.pipe.tokenizer.teacher_input(tokens_BL)
    parts: dict[int, Tensor] = {}
    for name, transformer in subject.pipe.backbones_of(row).items():
        teacher = TeacherPass(plan, name, row.policies.width, side_by_side=True)
        shared = {number for step in numbered(plan, name) if step.shares for number in step.scales}
        attending = (visit.scales for visit in teacher.plan.visits if visit.sees)
        branches = _Branches(_places(plan, scales, shared) for scales in attending)
        nobody = [transformer.spec.classes] * len(LABELS)
        _, unlabelled = (
            teacher.logits(transformer, features, torch.tensor(labels), dtype=subject.pipe.dtype, attend=attend)
            for labels, attend in ((LABELS, branches.labelled), (nobody, branches.unlabelled))
        )
        counts = [plan.model.tokens[scale] for scale in teacher.plan.sampled]
        parts |= zip(teacher.plan.sampled, unlabelled.split(counts, dim=1), strict=True)
    return torch.cat([parts[scale] for scale in range(plan.model.scales)], dim=1)


def _places(plan: Plan, numbers: Sequence[int], shared: Collection[int]) -> Tensor:
    """Which of the scales' tokens (n, 1) are of shared ones."""
    tokens, count = plan.model.tokens, plan.model.scales
    return torch.tensor([[number in shared] for number in numbers for _ in range(tokens[number % count])])


class _Branches:
    """Attention of two passes: what the first was given, layer by layer, stands in the second where it is shared."""

    def __init__(self, shared_n1: Iterable[Tensor]) -> None:
        self._shared = deque(shared_n1)
        self._given: deque[Tensor] = deque()

    def labelled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        self._given.append(fused_attention(q, k, v, mask, scale))
        return self._given[-1]

    def unlabelled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        own = fused_attention(q, k, v, mask, scale)
        return torch.where(self._shared.popleft(), self._given.popleft(), own)
