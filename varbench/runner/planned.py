"""Plans in the words of a record: their steps, what they cost, and what a roofline predicts. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from varbench.compiler import compile_plan
from varbench.cost import Work, predict, work
from varbench.hardware import Hardware
from varbench.plan import Plan, Step, total
from varbench.records import PlanStep, PlanSummary, Totals, call_runs
from varbench.rows import ACCOUNTINGS, Row


def summary(row: Row, plan: Plan, *, batch: int, dtype: str, hardware: Hardware | None) -> PlanSummary:
    """The plan with its costs for a batch, and the same row's totals under both accountings."""
    counted = work(plan, batch=batch, dtype=dtype)
    predicted = None if hardware is None else predict(counted, hardware)
    accountings = {}
    for accounting in ACCOUNTINGS:
        other = compile_plan(plan.model, row.policies, accounting=accounting, loaded=dict(plan.backbones))
        accountings[accounting] = totals(work(other, batch=batch, dtype=dtype), other)
    return PlanSummary(
        digest=plan.digest,
        batch=batch,
        steps=tuple(
            _step(plan, step, counted, place, None if predicted is None else predicted.steps[place])
            for place, step in enumerate(plan.steps)
        ),
        totals=totals(counted, plan),
        accountings=accountings,
        weights_bytes=counted.weight_bytes,
        hardware=None if hardware is None else hardware.name,
        predicted_seconds=None if predicted is None else predicted.transformer,
    )


def totals(counted: Work, plan: Plan, *, state_after: Sequence[int] | None = None) -> Totals:
    """Sums over the steps. The state at the end is what the last step but one leaves, where the last leaves nothing."""
    after = state_after if state_after is not None else [step.state_after for step in counted.steps]
    return Totals(
        flops=float(counted.transformer_flops),
        steps=len(plan.steps),
        layer_tokens=sum(call.attention.tokens for step in plan.steps for call in step.calls),
        cache_peak_bytes=max(after, default=0),
        cache_end_bytes=max(after[-2:], default=0),
    )


def _step(plan: Plan, step: Step, counted: Work, place: int, seconds: float | None) -> PlanStep:
    costs = counted.steps[place]
    return PlanStep(
        scales=tuple(scale + 1 for scale in step.scales),
        samples=step.samples + 1,
        backbone=step.backbone,
        branches=("cond", "uncond")[: step.branches],
        mask=step.mask,
        calls=call_runs(
            (
                call.layer,
                call.attention.tokens,
                call.ffn.tokens,
                max((total(use.read) for use in call.cache), default=0),
                max((use.own for use in call.cache), default=0),
                max((total(use.kept) for use in call.cache), default=0),
            )
            for call in step.calls
        ),
        flops=float(costs.flops),
        cache_held_bytes=costs.state_after,
        cache_allocated_bytes=costs.state_peak,
        activation_bytes=costs.activations,
        moved_bytes=costs.bytes_moved,
        predicted_seconds=seconds,
    )
