"""What a row keeps beside the main model's weights, and how its experts lie in the FFNs.

Own numbers come from the weight file, where a training put them; else they are as the plugin makes them first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varbench.errors import PlanError, UserError
from varbench.experts import WidthPolicy
from varbench.model.transformer import OwnNumbers, Transformer
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan

SEED = 0
"""Of numbers that no training made."""

Splits = Sequence[Tensor | None]
"""For each layer the hidden units (E, U) of each expert; None where they are as they lie."""


@dataclass(frozen=True, kw_only=True)
class OwnOfRow:
    """A row's own numbers and its experts."""

    plugin: str
    tensors: Mapping[str, Tensor]
    splits: Splits
    """Empty where every FFN is computed whole."""
    key: str
    """Rows of one key run on the same weights."""

    def put_into(self, model: Transformer) -> None:
        model.own = OwnNumbers(self.plugin, self.tensors)
        for layer, split in enumerate(self.splits):
            if split is not None:
                ffn, order = model.block(layer).ffn, split.flatten()
                ffn.fc1.weight.data = ffn.fc1.weight[order]
                ffn.fc1.bias.data = ffn.fc1.bias[order]
                ffn.fc2.weight.data = ffn.fc2.weight[:, order]

    def check(self, model: Transformer) -> None:
        """Refuses a model whose FFNs have no parts that could be computed alone."""
        for layer in range(len(self.splits)):
            ffn = model.block(layer).ffn
            if any(type(one) is not nn.Linear for one in (ffn.fc1, ffn.fc2)):
                raise PlanError(
                    f"{self.plugin} computes parts of FFNs, and in layer {layer} a transform has put "
                    f"{type(ffn.fc1).__name__} in a linear layer's place; run the two in rows of their own"
                )


class OwnOfWeights:
    """The own numbers of a pipeline's main model: those that its file held, and those that were made for rows."""

    def __init__(self, main: Transformer) -> None:
        self._main = main
        self._held, main.own = main.own, OwnNumbers()
        self._made: dict[str, Mapping[str, Tensor]] = {}

    def of_row(self, row: RowPolicies, plan: Plan) -> OwnOfRow | None:
        """What a row needs beside the model; None where it needs nothing."""
        width = row.width
        partly = any(call.ffn.width is not None for step in plan.steps for call in step.calls)
        if width is None or not (partly or width.policy.own):
            return None
        key, tensors = self._of(width)
        splits = splits_of(width, self._main, tensors) if partly else []
        digest = hashlib.sha256(key.encode())
        for split in splits:
            digest.update(b"in order" if split is None else split.cpu().numpy().tobytes())
        return OwnOfRow(plugin=width.plugin, tensors=tensors, splits=splits, key=digest.hexdigest())

    def _of(self, width: Owned[WidthPolicy]) -> tuple[str, Mapping[str, Tensor]]:
        """A plugin's numbers in the compute type, made once for all rows that want the same; and a name for them."""
        own = width.policy.own
        key = f"{width.plugin} {sorted(own.shapes.items()) if own else ''}"
        if key not in self._made:
            held = self._held.tensors() if self._held.plugin == width.plugin else None
            found = own_numbers(width, self._main, held=held)
            weight = self._main.word_embed.weight
            self._made[key] = {
                name: one.to(weight.device, weight.dtype if one.is_floating_point() else None)
                for name, one in found.items()
            }
        return key, self._made[key]


@torch.inference_mode(False)
@torch.no_grad()
def own_numbers(
    width: Owned[WidthPolicy], model: Transformer, *, held: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """A plugin's own numbers, in the order of its shapes: those that a file held, if they are of its sizes, else as it makes them."""
    own = width.policy.own
    if own is None:
        return {}
    made = held
    if made is None:
        weights = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
        made = width.ask(own.initial, weights, SEED)
    wrong = [
        f"{name} is {_described(made.get(name))}, not {shape} of {'whole numbers' if name in own.whole else 'numbers'}"
        for name, shape in own.shapes.items()
        if name not in made or tuple(made[name].shape) != shape or made[name].is_floating_point() == (name in own.whole)
    ]
    wrong += [f"{name} is no name of its shapes" for name in made if name not in own.shapes]
    if wrong and held is not None:
        raise UserError(
            f"the weights hold numbers of {width.plugin}'s own that are not of this row: {'; '.join(wrong)}. Use the "
            "parameters that they were trained with, or train this row"
        )
    if wrong:
        raise PlanError(f"{width.plugin}: initial gave what OwnParameters.shapes do not say: {'; '.join(wrong)}")
    # A file has an order of its own, and a training is resumed only where the parameters' is the same.
    return {name: made[name] for name in own.shapes}


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def splits_of(width: Owned[WidthPolicy], model: Transformer, own: Mapping[str, Tensor]) -> list[Tensor | None]:
    """For each layer the hidden units of each expert, as the policy says."""
    policy, spec = width.policy, model.spec
    found: list[Tensor | None] = []
    for layer in range(spec.depth):
        split = width.ask(policy.split, layer, own=own)
        if split is not None:
            units = torch.arange(spec.hidden, device=split.device)
            sizes = (policy.experts, spec.hidden // policy.experts)
            if tuple(split.shape) != sizes or not torch.equal(split.flatten().sort().values, units):
                raise PlanError(
                    f"{width.plugin}: split of layer {layer} is no partition of {spec.hidden} hidden units into "
                    f"{sizes[0]} experts of {sizes[1]}"
                )
        found.append(split)
    return found
