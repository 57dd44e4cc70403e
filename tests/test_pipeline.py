"""The pipeline as a user meets it: what it takes, what it refuses and how, what it says of itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import golden_files as golden
import models
import numpy as np
import pytest
import torch

import varbench
from varbench.engine.pipeline import Pipeline
from varbench.errors import UserError
from varbench.train.export import export

SIDE = models.SPEC.image_side


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_arrays_and_lists_are_taken_as_tensors_are(pipe: Pipeline, images: torch.Tensor) -> None:
    tokens = pipe.encode(images)
    assert torch.equal(pipe.encode(images.numpy()), tokens)
    assert torch.equal(pipe.encode(images.numpy().astype(np.float64)), tokens)
    shown = pipe.decode(tokens)
    for same in (tokens.numpy(), tokens.numpy().astype(np.uint16), tokens.tolist()):
        assert torch.equal(pipe.decode(same), shown)
    forced = pipe.generate(np.array([1, 2], np.int32), tokens=tokens.numpy())
    assert torch.equal(forced.tokens, tokens)
    assert torch.equal(pipe.logits(tokens.tolist(), (1, 2)), pipe.logits(tokens, torch.tensor([1, 2])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: ((x + 1) * 127.5).byte(), r"images are uint8; give floats in \[-1, 1\]: .* / 127.5 - 1"),
        (lambda x: (x + 1) * 127.5, r"images reach from [\d.]+ to 25[\d.]+; give floats in \[-1, 1\]"),
        (lambda x: x * torch.nan, r"images reach from nan to nan; give floats"),
        (lambda x: x[0], r"images have shape \(3, 16, 16\); small takes \(B, 3, 16, 16\)"),
        (lambda x: x[:0], r"images have shape \(0, 3, 16, 16\)"),
        (lambda x: "cat.png", r"images cannot be read as numbers .*; give a tensor, an array or a list"),
    ],
)
def test_images_of_another_kind_are_refused(pipe: Pipeline, images: torch.Tensor, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe.encode(change(images))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe.decode(torch.zeros(1, pipe.model.length)), "tokens are float32; give whole numbers"),
        (lambda pipe: pipe.decode([[1, 2]]), r"tokens have shape \(1, 2\); small takes \(B, 130\)"),
        (
            lambda pipe: pipe.decode(np.full((1, pipe.model.length), 64)),
            "tokens reach from 64 to 64; codes are 0 to 63",
        ),
        (lambda pipe: pipe.generate(["cat"]), "labels cannot be read as numbers"),
        (lambda pipe: pipe.generate([1.0]), "labels are float32; give whole numbers"),
        (lambda pipe: pipe.generate([]), r"labels must be a non-empty list of class numbers, not shape \(0,\)"),
        (lambda pipe: pipe.generate(3), r"labels must be a non-empty list of class numbers, not shape \(\)"),
        (lambda pipe: pipe.generate([11]), "label 11 is not a class of small: classes are 0 to 9"),
        (lambda pipe: pipe.generate([1], top_k=900), r"top_k is 900, and small has 64 codes; give 0 \(off\) to 64"),
    ],
)
def test_numbers_of_another_kind_are_refused(pipe: Pipeline, call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(pipe)


def test_what_they_say_of_themselves_is_short(pipe: Pipeline) -> None:
    out = pipe.generate([1, 2], method="variant@d3:bridge=2")
    assert repr(pipe) == "Pipeline(small and refiner, 6 layers of width 64, float32 on cpu, weights by rule)"
    assert repr(out) == "Output(2 images of 16x16 by variant@d3:bridge=2, 130 tokens each)"
    calls = sum(len(step.calls) for step in out.plan.steps)
    assert repr(out.plan) == f"Plan(variant@d3:bridge=2 on small, lossless, 6 steps, {calls} layer calls)"


def test_weights_are_random_only_where_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"var-d16 ships no weights; give vae= and var=, or random=True"):
        varbench.load_pipeline("var-d16")
    assert varbench.load_pipeline("tiny", random=True).weights["main"] == "random, seed 0"
    files = golden.save_checkpoints(tmp_path, models.SPEC)
    with pytest.raises(UserError, match="leave one of the two out"):
        varbench.load_pipeline(**files, random=True)


def said(pipe: Pipeline, method: str) -> list[str]:
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        for _ in range(2):
            pipe.generate([1], method=method)
    assert all(one.filename == __file__ for one in noted)
    return [str(one.message) for one in noted]


def test_a_method_on_weights_that_were_not_trained_for_it_warns_once(tmp_path: Path) -> None:
    files = golden.save_checkpoints(tmp_path, models.SPEC)
    pipe = varbench.load_pipeline(**files)
    (warning,) = said(pipe, "variant@d3:bridge=2")
    assert warning.startswith("variant@d3:bridge=2 is made for weights that recipe variant@")
    assert f"({pipe.weights['main'][:8]}…) are not known to be of any recipe" in warning
    assert not said(pipe, "full_var"), "it trains nothing"
    assert not said(pipe, "scale_window@w1"), "it trains nothing"
    assert not said(models.pipeline(), "variant@d3:bridge=2"), "weights of no file are nobody's mistake"

    recipe = warning.partition("that recipe ")[2].partition(" ")[0]
    for trained_by, expected in ((recipe, 0), ("fixed_ratio@p05", 1)):
        path = tmp_path / f"{expected}.safetensors"
        export(models.transformer(models.SPEC), path, spec=models.SPEC, record={"row": trained_by})
        found = said(varbench.load_pipeline(vae=files["vae"], var=path), "variant@d3:bridge=2")
        assert len(found) == expected
        assert all("are of recipe fixed_ratio@p05." in text for text in found)
