"""A promise about FFNs that are not computed whole: the experts that were chosen are computed, and nothing else is in it.

Held against the same row with every FFN written out: on the weights as they were before experts were put side by side, each
token with the rows and columns of its own hidden units. That no more is computed is seen by the trace and the count of FLOPs.

Letters: R rows, n tokens, N tokens of all rows, C width, u hidden units of a token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varbench.check import stand_ins
from varbench.check.sameness import tolerance
from varbench.check.subject import PlannedRow
from varbench.experts import Own, WidthPolicy
from varbench.model.transformer import FeedForward, Transformer
from varbench.plan.owned import OwnedTransform
from varbench.policies import MAIN, Transformed
from varbench.rows.grammar import Row


def chosen_experts_are_computed(subject: PlannedRow) -> Iterator[str]:
    """The FFN gives the sum of the experts that were chosen, as a plain sum over each token's hidden units has it, and what was
    estimated for tokens that were left out."""
    plan = subject.plan
    if plan.skipped or not any(call.ffn.width is not None for step in plan.steps for call in step.calls):
        return
    moment = _Moment()

    def observe(what: str, step: int) -> None:
        moment.scale = plan.steps[step].samples

    row = subject.going_on
    tokens = subject.generate(row).tokens
    noted = stand_ins.replaced(
        row, "noted", lambda own: own, lambda own: own, lambda own: _NotedChoices(own, moment.choices)
    )
    made = subject.generate(noted, tokens=tokens, return_logits=True).logits
    own = subject.pipe.backbones_of(subject.row)[MAIN].own.tensors()
    written_out = _written_out(row, own, moment)
    summed = subject.generate(written_out, tokens=tokens, return_logits=True, observer=observe)
    assert made is not None and summed.logits is not None
    distance = float((made - summed.logits).abs().max())
    if not distance <= tolerance(plan):
        yield (
            f"logits differ by up to {distance:.3g} from those of the chosen experts summed unit by unit; at most "
            f"{tolerance(plan):.3g} comes from rounding"
        )


class _Moment:
    """Which scale runs, and what was chosen where nothing was written out, in order: a near tie could fall either way."""

    def __init__(self) -> None:
        self.scale = 0
        self.choices: deque[Tensor] = deque()


class _NotedChoices(stand_ins.StandIn):
    def __init__(self, asked: WidthPolicy, choices: deque[Tensor]) -> None:
        super().__init__(asked)
        self._choices = choices

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        chosen: Tensor = self.asked.route(hidden_RLC, count, layer=layer, scale=scale, own=own)
        self._choices.append(chosen)
        return chosen

    def gate(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        places: Tensor = self.asked.gate(hidden_RLC, count, layer=layer, scale=scale, own=own)
        self._choices.append(places)
        return places


def _written_out(row: Row, own: Own, moment: _Moment) -> Row:
    width = row.policies.width
    assert width is not None
    plugin, policy = width.plugin, width.policy

    def put(model: Transformer) -> Transformer:
        for layer in range(len(model.blocks)):
            block = model.block(layer)
            block.register_module("ffn", _UnitByUnit(block.ffn, layer, policy, own, moment))
        return model

    name = f"{row.name} (unit by unit)"
    summed = OwnedTransform(plugin=plugin, part=name, backbone=MAIN, policy=Transformed(apply=put))
    transforms = (*row.policies.transforms, summed)
    return replace(row, name=name, policies=replace(row.policies, name=name, width=None, transforms=transforms))


class _UnitByUnit(nn.Module):
    def __init__(self, ffn: FeedForward, layer: int, policy: WidthPolicy, own: Own, moment: _Moment) -> None:
        super().__init__()
        self.ffn, self.layer, self.policy, self.moment = ffn, layer, policy, moment
        self.mine = [dict(own)]

    def forward(self, x_RnC: Tensor, dtype: torch.dtype) -> Tensor:
        policy, scale, own, layer = self.policy, self.moment.scale, self.mine[0], self.layer
        kept = policy.tokens(layer, scale)
        if kept is None or kept == x_RnC.shape[1]:
            return self._computed(x_RnC, dtype)
        places_Rm = self.moment.choices.popleft().tolist()
        computed_RmC = self._computed(torch.stack([x[at] for x, at in zip(x_RnC, places_Rm, strict=True)]), dtype)
        estimated_RnC = policy.estimate(x_RnC, layer=layer, scale=scale, own=own)
        for row, places in enumerate(places_Rm):
            estimated_RnC[row, places] = computed_RmC[row]
        return estimated_RnC

    def _computed(self, x_RnC: Tensor, dtype: torch.dtype) -> Tensor:
        policy, scale, own, fc1, fc2 = self.policy, self.moment.scale, self.mine[0], self.ffn.fc1, self.ffn.fc2
        count = policy.count(self.layer, scale)
        if count is None or (count == policy.experts and not policy.varies):
            whole: Tensor = self.ffn(x_RnC, dtype)
            return whole
        split_EU = policy.split(self.layer, own=own)
        if split_EU is None:
            split_EU = torch.arange(fc1.out_features).view(policy.experts, -1)
        chosen = torch.arange(count).expand(*x_RnC.shape[:2], -1)
        if policy.routed:
            chosen = self.moment.choices.popleft()
        units_Nu = [split_EU[its[its >= 0]].flatten() for its in chosen.flatten(0, 1)]
        x_NC = x_RnC.flatten(0, 1)
        sums = [
            fc2.weight[:, units] @ F.gelu(fc1.weight[units] @ x + fc1.bias[units], approximate="tanh") + fc2.bias
            for x, units in zip(x_NC, units_Nu, strict=True)
        ]
        return torch.stack(sums).view_as(x_RnC)
