"""The part of each FFN that a plan computes, and the numbers that plugins keep beside the model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from varbench.errors import PlanError
from varbench.experts import WidthPolicy
from varbench.plan.cache_uses import SubLayersOf
from varbench.plan.declared import Choosing, OwnStored
from varbench.plan.owned import Owned
from varbench.plan.steps import LayerCall, Plan, Step, Width
from varbench.policies import MAIN, StepSpec
from varbench.spec import ModelSpec


def with_widths(
    model: ModelSpec,
    specs: Sequence[StepSpec],
    layers: Sequence[Sequence[tuple[int, int]]],
    work: SubLayersOf,
    width: Owned[WidthPolicy] | None,
) -> SubLayersOf:
    """The work with what each FFN of the main model computes of its hidden units."""
    if width is None:
        return work
    policy = width.policy
    experts = width.whole(policy.experts, policy.count)
    if experts < 1 or model.hidden % experts:
        raise PlanError(
            f"{width.plugin}: {experts} experts of {model.name}'s {model.hidden} hidden units are not of equal size; give "
            f"a number that divides {model.hidden}"
        )
    routed, varies = bool(policy.routed), bool(policy.varies)
    if varies and not routed:
        raise PlanError(
            f"{width.plugin}: how many experts a token computes varies, and none are chosen by content; set routed"
        )
    found = dict(work)
    for index, spec in enumerate(specs):
        if spec.backbone != MAIN:
            continue
        scale = spec.scales[-1]
        available = sum(model.tokens[one] for one in spec.scales)
        for place, (layer, _) in enumerate(layers[index]):
            where = f"{width.plugin}: the FFN of layer {layer} at {model.scale_name(scale)}"
            chosen = width.count(policy.count, layer, scale)
            if chosen is not None and not 1 <= chosen <= experts:
                raise PlanError(f"{where} computes {chosen} experts of {experts}; give 1 to {experts}")
            kept = width.count(policy.tokens, layer, scale)
            if kept is not None and not 1 <= kept <= available:
                raise PlanError(f"{where} computes {kept} tokens of {available}; give 1 to {available}")
            attention, ffn = work[index, place]
            if not ffn.tokens:
                continue
            if kept is not None and (len(spec.scales) > 1 or ffn.picked):
                why = "a token policy picks tokens too" if ffn.picked else f"the step encodes {len(spec.scales)} scales"
                raise PlanError(f"{where} leaves tokens out, and {why}; that is not supported")
            partly = chosen is not None and (chosen < experts or varies)
            left_out = kept is not None and kept < available
            if partly or left_out:
                part = Width(
                    experts=experts,
                    chosen=chosen if partly and chosen is not None else experts,
                    routed=routed and partly,
                    varies=varies and partly,
                    tokens=kept if left_out else None,
                )
                found[index, place] = (attention, replace(ffn, width=part))
    return found


def at_least(plan: Plan) -> Plan:
    """The plan with one expert for each token where their number varies: of work that hangs on content, the least."""
    if not plan.varies:
        return plan
    decision = plan.decision
    if decision is not None:
        ways = tuple(replace(way, steps=_with_one(way.steps)) for way in decision.ways)
        decision = replace(decision, ways=ways)
    return replace(plan, steps=_with_one(plan.steps), decision=decision)


def _with_one(steps: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(replace(step, calls=tuple(_one_expert(call) for call in step.calls)) for step in steps)


def _one_expert(call: LayerCall) -> LayerCall:
    width = call.ffn.width
    if width is None or not width.varies:
        return call
    return replace(call, ffn=replace(call.ffn, width=replace(width, chosen=1)))


def choosing(work: SubLayersOf, width: Owned[WidthPolicy] | None) -> Choosing | None:
    """FLOPs for each token of a choice, where any is made."""
    if width is None or not any(ffn.width is not None and ffn.width.chooses for _, ffn in work.values()):
        return None
    policy = width.policy
    given = {"routing": policy.routing_flops, "gating": policy.gating_flops, "estimating": policy.estimating_flops}
    for what, flops in given.items():
        if not isinstance(flops, int) or flops < 0:
            raise PlanError(f"{width.plugin}: {what}_flops is {flops!r}; give FLOPs for each token, 0 or more")
    return Choosing(**given)


def own_stored(width: Owned[WidthPolicy] | None) -> OwnStored | None:
    own = None if width is None else width.policy.own
    if width is None or own is None:
        return None
    numbers = {name: math.prod(shape) for name, shape in own.shapes.items()}
    whole = sum(numbers[name] for name in own.whole)
    return OwnStored(plugin=width.plugin, trained=sum(numbers.values()) - whole, whole=whole)
