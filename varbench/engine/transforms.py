"""Replaced modules: a copy of a backbone, changed by a row's transforms or with experts side by side. The backbone itself is
left as it is.

What the copy leaves unchanged shares the backbone's memory, so a row costs the bytes that its transform declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from varbench.engine.own_weights import OwnOfRow
from varbench.errors import PlanError
from varbench.model.transformer import Transformer
from varbench.plan.owned import OwnedTransform


@torch.inference_mode(False)
@torch.no_grad()
def transformed(
    backbone: Transformer, transforms: Sequence[OwnedTransform], own: OwnOfRow | None = None
) -> Transformer:
    """The backbone as the transforms leave it, each applied to what the one before it gave; the first is given FFNs whose
    units lie expert by expert, and a row's own numbers, where it has any."""
    model = _copy(backbone)
    if own is not None:
        own.put_into(model)
    for owned in transforms:
        changed = owned.ask(owned.policy.apply, model)
        if not isinstance(changed, Transformer):
            raise PlanError(
                f"{owned.plugin}: apply gave {type(changed).__name__}, not the transformer to run; change the one that it is "
                "given, and return it"
            )
        model = changed
    if own is not None:
        own.check(model)
    model = model.to(backbone.pos_1LC.device).requires_grad_(False).eval()
    share(model, backbone)
    return model


def _copy(backbone: Transformer) -> Transformer:
    """With weights of its own: a transform may change them where they lie."""
    with torch.device("meta"):
        copy = Transformer(backbone.spec)
    copy.load_state_dict({name: tensor.clone() for name, tensor in backbone.state_dict().items()}, assign=True)
    return copy


@torch.no_grad()
def share(model: Transformer, backbone: Transformer) -> None:
    """What is the same in both lies in memory once."""
    originals = dict(backbone.named_parameters())
    for name, parameter in model.named_parameters():
        original = originals.get(name)
        if original is not None and original.dtype == parameter.dtype and torch.equal(original, parameter):
            parameter.data = original.data


def stored(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a model's modules hold, those that are not registered with torch too."""
    for module in model.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values()):
            yield from (tensor for tensor in _tensors(value))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _tensors(inner)
