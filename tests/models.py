"""A small model whose every layer matters, for tests that run the engine."""

from __future__ import annotations

import golden_files as golden
import torch

from varbench.engine.pipeline import Pipeline
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.spec import ModelSpec, TokenizerSpec

TOKENIZER = TokenizerSpec(channels=32, multipliers=(1, 1), blocks=1, code_dim=8, vocabulary=64)
SPEC = ModelSpec(name="small", sides=(1, 2, 3, 4, 6, 8), depth=6, width=64, heads=4, classes=10, tokenizer=TOKENIZER)
NARROW = ModelSpec(name="small-narrow", sides=SPEC.sides, depth=4, width=32, heads=2, classes=10, tokenizer=TOKENIZER)


def transformer(spec: ModelSpec, prefix: str = "var") -> Transformer:
    model = Transformer(spec).requires_grad_(False)
    model.load_state_dict(golden.ruled_state(model, prefix))
    return model


def tokenizer(spec: ModelSpec = SPEC) -> Tokenizer:
    module = Tokenizer.for_model(spec).requires_grad_(False)
    module.load_state_dict(golden.ruled_state(module, "vae"))
    return module


def pipeline(spec: ModelSpec = SPEC, *, dtype: str = "float32", narrow: ModelSpec = NARROW) -> Pipeline:
    return Pipeline(
        tokenizer=tokenizer(spec),
        backbones={"main": transformer(spec), "refiner": transformer(narrow, "refiner")},
        device="cpu",
        dtype=dtype,
        weights={"vae": "by rule", "main": "by rule", "refiner": "by rule"},
    )


LABELS = torch.tensor([0, 3, 9, 10, 5])
