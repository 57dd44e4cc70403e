"""The model that methods are checked on: tiny, random, and such that every layer, scale and label matters.

Official initial values will not do: their gammas are near zero, so that skipping a layer would hardly show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from varbench.engine.pipeline import Pipeline
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.policies import MAIN
from varbench.spec import ModelSpec, TokenizerSpec

SPEC = ModelSpec(
    name="var-d8",
    sides=(1, 2, 3, 4, 6, 8),
    depth=8,
    width=64,
    heads=4,
    classes=10,
    tokenizer=TokenizerSpec(channels=32, multipliers=(1, 2), blocks=1, code_dim=16, vocabulary=256),
)


def lively_pipeline(model: ModelSpec = SPEC, backbones: Mapping[str, ModelSpec] | None = None) -> Pipeline:
    """A pipeline of random weights in float32, the same at every call. `backbones` are further models by name."""
    generator = torch.Generator().manual_seed(20_02_2024)
    specs = {MAIN: model, **(backbones or {})}
    with torch.random.fork_rng(devices=[]):
        tokenizer = Tokenizer.for_model(model)
        transformers = {name: Transformer(spec) for name, spec in specs.items()}
    for module in (tokenizer, *transformers.values()):
        _enliven_(module.requires_grad_(False), generator)
    return Pipeline(
        tokenizer=tokenizer,
        backbones=transformers,
        device="cpu",
        dtype="float32",
        weights=dict.fromkeys(("vae", *specs), "random, of the conformance kit"),
    )


def _enliven_(module: nn.Module, generator: torch.Generator) -> None:
    for name, tensor in module.state_dict().items():
        if not name.endswith("ema_vocab_hit_SV"):
            tensor.copy_(_value(name, torch.randn(tensor.shape, generator=generator)))


def _value(name: str, normal: Tensor) -> Tensor:
    if name.endswith("scale_mul_1H11"):
        return math.log(4) + 0.1 * normal
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * normal
    if normal.ndim <= 1 or name.endswith("bias"):
        return 0.1 * normal
    if "embed" in name or "class_emb" in name or "pos_" in name:
        return normal if name.endswith("quantize.embedding.weight") else 0.5 * normal
    if "ada_gss" in name:
        return 0.3 * normal
    # Every output of a matrix or convolution has about the variance of its inputs.
    inputs = normal[0].numel()
    return normal / float(inputs**0.5)
