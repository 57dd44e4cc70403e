"""A frozen network in fewer passes: each batch normalisation that follows a convolution becomes part of its weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from varbench.quality.networks import JudgeBlock

Module = TypeVar("Module", bound=nn.Module)


def folded(network: Module) -> Module:
    """A copy that answers the same up to rounding. What is not followed by its normalisation stays as it is."""
    copied = copy.deepcopy(network).eval()
    for module in copied.modules():
        if isinstance(module, nn.Sequential):
            _fold(module, list(zip(module._modules, list(module._modules)[1:], strict=False)))
        elif isinstance(module, JudgeBlock):
            _fold(module, [("conv1", "norm2")])
    copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack `memory_format`
    return copied


def _fold(module: nn.Module, neighbours: list[tuple[str, str]]) -> None:
    for name, after in neighbours:
        conv, norm = module.get_submodule(name), module.get_submodule(after)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, after, nn.Identity())
