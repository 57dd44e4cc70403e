"""Agreement with the official code, tensor by tensor, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_files as golden
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import varbench
from varbench.engine.pipeline import Pipeline
from varbench.engine.sampler import filtered

LOGITS, LATENTS, IMAGES = 1e-5, 3e-5, 3e-4


@pytest.fixture(scope="module", params=["official_tiny", "official_ten_scales"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pipeline, dict[str, Tensor]]:
    config, tensors = golden.read(request.param)
    spec = golden.model_spec(config)
    files = golden.save_checkpoints(tmp_path_factory.mktemp("official"), spec)
    return varbench.load_pipeline(**files, num_heads=spec.heads), tensors


def worst(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        ours = F.avg_pool2d(ours, ours.shape[-1] // theirs.shape[-1])
    return float((ours - theirs).abs().max())


def test_tokenizer(case: tuple[Pipeline, dict[str, Tensor]]) -> None:
    pipe, theirs = case
    image = golden.input_image(theirs, pipe.model.image_side)
    with torch.no_grad():
        assert worst(pipe.tokenizer.latent(image), theirs["latent"]) < LATENTS
        assert worst(pipe.tokenizer.teacher_input(theirs["tokens"]), theirs["teacher_input"]) < LOGITS
    assert torch.equal(pipe.encode(image), theirs["tokens"])
    assert worst(pipe.decode(theirs["tokens"]) * 2 - 1, theirs["reconstruction"]) < IMAGES


def test_teacher_forcing(case: tuple[Pipeline, dict[str, Tensor]]) -> None:
    pipe, theirs = case
    assert worst(pipe.logits(theirs["tokens"], theirs["labels"]), theirs["teacher_logits"]) < LOGITS


@pytest.mark.parametrize("method", ["full_var", "full_var:accounting=upstream", "variant@full"])
def test_greedy_generation(case: tuple[Pipeline, dict[str, Tensor]], method: str) -> None:
    pipe, theirs = case
    out = pipe.generate(theirs["labels"], cfg=1.5, top_k=1, method=method, return_logits=True)
    assert torch.equal(out.tokens, theirs["greedy_tokens"])
    assert out.logits is not None
    assert worst(out.logits, theirs["greedy_logits"]) < LOGITS
    assert worst(out.images, theirs["greedy_image"]) < IMAGES


@pytest.mark.parametrize("name", ["official_tiny", "official_ten_scales"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 0.0), (9, 0.8)])
def test_filter(name: str, top_k: int, top_p: float) -> None:
    _, theirs = golden.read(name)
    ours = filtered(theirs["filter_logits"], top_k=top_k, top_p=top_p).softmax(dim=-1)
    assert worst(ours, theirs[f"filter_probs_k{top_k}_p{top_p}"]) < 1e-6


@pytest.mark.parametrize("first", [6, 7, 8, 9])
def test_code_pair(first: int, tmp_path: Path) -> None:
    """CoDe's greedy output at each hand-over, from the authors' code on two small models."""
    config, theirs = golden.read("code_pair")
    drafter, refiner = (_pair_spec(config, part) for part in ("drafter", "refiner"))
    files = golden.save_checkpoints(tmp_path, drafter, prefix="drafter")
    other = golden.save_checkpoints(tmp_path, refiner, prefix="refiner", name="refiner")
    pipe = varbench.load_pipeline(**files, companions={"refiner": other["var"]})
    out = pipe.generate(theirs["labels"], cfg=1.5, top_k=1, method=f"code@training_free/n{first}", return_logits=True)
    assert torch.equal(out.tokens, theirs[f"tokens_n{first}"])
    assert worst(out.images, theirs[f"image_n{first}"]) < IMAGES


def _pair_spec(config: dict[str, Any], part: str) -> Any:
    return golden.model_spec({**config, **config[part]})
