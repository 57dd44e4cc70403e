"""A plan and its trace as records keep them: counts per layer call, work and state per step, totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from varbench.plan import cost
from varbench.plan.trace import foreseen
from varbench.plan.widths import at_least
from varbench.record.planned import CallRun, PlanStep, PlanSummary, PlanTransform, Totals

if TYPE_CHECKING:
    from varbench.plan.hardware import Hardware
    from varbench.plan.steps import Decision, LayerCall, Plan, Step
    from varbench.plan.trace import Trace

BRANCHES = ("labelled", "unlabelled")


def plan_summary(
    plan: Plan,
    *,
    batch: int,
    dtype: str,
    device: str = "cuda",
    filtered: bool = True,
    hardware: Hardware | None = None,
    other_accounting: Plan | None = None,
) -> PlanSummary:
    """The plan with its work for a batch. `other_accounting` is the same row compiled under the accounting that this plan does
    not have."""
    counted = cost.work(plan, batch=batch, dtype=dtype, device=device, filtered=filtered)
    predicted = cost.predict(counted, hardware) if hardware is not None else None
    steps = tuple(
        PlanStep(
            scales=tuple(scale + 1 for scale in step.scales),
            samples=step.samples + 1,
            backbone=step.backbone,
            branches=BRANCHES[: step.branches],
            mask=step.mask,
            calls=call_runs(_calls(step)),
            flops=work.flops,
            moved_bytes=work.bytes_moved,
            state_peak_bytes=work.state_peak,
            state_after_bytes=work.state_after,
            activation_bytes=work.activations,
            predicted_seconds=predicted.steps[number] if predicted else None,
        )
        for number, (step, work) in enumerate(zip(plan.steps, counted.steps, strict=True))
    )
    totals = _totals(plan, counted)
    accountings: dict[str, Totals] = {plan.accounting: totals}
    if other_accounting is not None:
        accountings[other_accounting.accounting] = _totals(
            other_accounting, cost.work(other_accounting, batch=batch, dtype=dtype, device=device)
        )
    read, readable, everything = plan.entries_read
    return PlanSummary(
        digest=plan.digest,
        picks=plan.asks,
        batch=batch,
        steps=steps,
        totals=totals,
        accountings=accountings,
        transforms=tuple(
            PlanTransform(plugin=transform.part, backbone=transform.backbone, part=part, **dataclasses.asdict(change))
            for transform in plan.transforms
            for part, change in transform.changes
        ),
        read_share=read / readable if readable else None,
        token_share=read / everything,
        least=None if not plan.varies else _least(plan, batch=batch, dtype=dtype, device=device),
        weights_bytes=counted.weight_bytes,
        hardware=predicted.hardware if predicted else None,
        hardware_source=hardware.source if hardware else None,
        bound=predicted.bound if predicted else None,
        predicted_seconds=predicted.transformer if predicted else None,
    )


def _least(plan: Plan, *, batch: int, dtype: str, device: str) -> Totals:
    taken = cost.least_taken(plan, batch=batch, dtype=dtype, device=device)
    trace = foreseen(at_least(plan), batch=batch, dtype=dtype, taken=taken)
    return trace_totals(trace, plan)


def _totals(plan: Plan, counted: cost.PlanWork) -> Totals:
    """Work of the transformer for a batch, without the decoder, which every method shares."""
    return Totals(
        flops=counted.transformer_flops,
        steps=len(plan.steps),
        layer_tokens=sum(call.attention.tokens for step in plan.steps for call in step.calls),
        state_peak_bytes=counted.state_peak,
        state_end_bytes=counted.state_end,
    )


def trace_totals(trace: Trace, plan: Plan) -> Totals:
    """What was seen to run, counted as a plan is counted."""
    return Totals(
        flops=sum(step.blocks + step.others for step in cost.flops_of(trace.steps, plan)),
        steps=len(trace.steps),
        layer_tokens=_layer_tokens(trace),
        state_peak_bytes=max(trace.state_peak),
        state_end_bytes=trace.state_peak[-1],
        ways={} if plan.decision is None else _ways(plan.decision, trace),
    )


def _layer_tokens(trace: Trace) -> int:
    """For an image, on average where images go different ways."""
    images = trace.steps[0].images
    return round(sum(step.images * call.attention for step in trace.steps for call in step.calls) / images)


def _ways(decision: Decision, trace: Trace) -> dict[str, int]:
    return {way.said: images for way, images in zip(decision.ways, trace.taken, strict=True) if images}


def call_runs(calls: Iterable[tuple[int, int, int, int, int, int]]) -> tuple[CallRun, ...]:
    """Layer calls (layer, attention tokens, FFN tokens, reads, own, kept) with equal neighbours written once."""
    runs: list[CallRun] = []
    for layer, attention, ffn, reads, own, kept in calls:
        new = CallRun(layers=(layer,), attention_tokens=attention, ffn_tokens=ffn, reads=reads, own=own, kept=kept)
        if runs and dataclasses.replace(runs[-1], layers=new.layers) == new:
            new = dataclasses.replace(new, layers=(*runs.pop().layers, layer))
        runs.append(new)
    return tuple(runs)


def _calls(step: Step) -> Iterator[tuple[int, int, int, int, int, int]]:
    for call in step.calls:
        reads, own, kept = _entries(call)
        yield call.layer, call.attention.tokens, call.ffn.tokens, reads, own, kept


def _entries(call: LayerCall) -> tuple[int, int, int]:
    """Cache entries read, added and kept; where head groups differ, the rounded mean over heads."""
    heads = sum(len(use.heads) for use in call.cache)
    sums = [0, 0, 0]
    for use in call.cache:
        for place, counts in enumerate((use.read, None, use.kept)):
            entries = use.own if counts is None else sum(segment.count for segment in counts)
            sums[place] += len(use.heads) * entries
    reads, own, kept = (round(amount / heads) if heads else 0 for amount in sums)
    return reads, own, kept
