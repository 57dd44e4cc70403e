"""Matrices in int8: what is stored and declared, against rounding written out; skipped where torchao is not installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from varbench import rows
from varbench.engine.pipeline import Pipeline
from varbench.engine.storage import storage_bytes
from varbench.engine.transforms import stored
from varbench.errors import UserError
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan

HAS_LIBRARY = importlib.util.find_spec("torchao") is not None
library = pytest.mark.skipif(not HAS_LIBRARY, reason="the extra varbench[quant] is not installed")
LABELS = (1, 4, 7)
D30 = presets.preset("var-d30").spec


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """To whole numbers up to 127, each row by its own scale."""
    scale = x.abs().amax(dim=-1, keepdim=True) / 127.5
    return (x / scale).round().clamp(-128, 127), scale


def by_hand(linear: nn.Linear, x: Tensor, *, activations: bool) -> Tensor:
    weight, scales = rounded(linear.weight)
    whole, steps = rounded(x) if activations else (x, torch.ones(()))
    made = (whole @ weight.T) * scales.T * steps
    return made if linear.bias is None else made + linear.bias


@library
@pytest.mark.parametrize(("point", "activations"), [("w8", False), ("w8a8", True)])
def test_a_layer_by_its_rule(pipe: Pipeline, point: str, activations: bool) -> None:
    """Scales are the library's (127 or 127.5 steps): ours agrees within one step of rounding, and the plain layer does not."""
    block: Any = pipe.backbones["main"].blocks[2]
    changed: Any = pipe.backbones_of(f"quant@{point}")["main"].blocks[2]
    x = torch.randn(2, 9, models.SPEC.width, generator=torch.Generator().manual_seed(3))
    for name in ("fc1", "fc2"):
        linear = getattr(block.ffn, name)
        given = x if name == "fc1" else torch.randn(2, 9, models.SPEC.hidden)
        ours, theirs = getattr(changed.ffn, name)(given), by_hand(linear, given, activations=activations)
        plain = nn.functional.linear(given, linear.weight, linear.bias)
        error = (plain - theirs).abs().max()
        assert 0 < (ours - plain).abs().max() < 2 * error
        assert (ours - theirs).abs().max() < error


@library
@pytest.mark.parametrize("text", ["quant@w8", "quant@w8a8", "quant@w8:parts=attention/ffn/conditioning/ends"])
def test_bytes_are_those_that_are_stored(pipe: Pipeline, text: str) -> None:
    plan = pipe.compile(text)[0]
    held = storage_bytes(stored(pipe.backbones_of(text)["main"]))
    assert cost.backbone_bytes(plan, "main", "float32") == pytest.approx(held, rel=0.003)
    assert held < 0.6 * storage_bytes(stored(pipe.backbones["main"]))


@library
def test_images_are_near_the_full_models(pipe: Pipeline) -> None:
    plain = pipe.generate(LABELS, return_logits=True)
    assert plain.logits is not None
    distances = []
    for point in ("w8", "w8a8"):
        made = pipe.generate(LABELS, tokens=plain.tokens, return_logits=True, method=f"quant@{point}").logits
        assert made is not None
        distances.append(float((made - plain.logits).abs().mean() / plain.logits.abs().mean()))
    assert 0 < distances[0] < distances[1] < 0.2
    assert torch.equal(pipe.generate(LABELS).tokens, plain.tokens), "the full model is left as it was"


def test_the_plan_has_its_bytes_and_its_type() -> None:
    full, w8, w8a8, more = (
        compile_plan(D30, rows.resolve(text, D30).policies)
        for text in ("full_var", "quant@w8", "quant@w8a8", "quant@w8:parts=ffn/attention/conditioning")
    )
    works = [cost.work(plan, batch=64, dtype="bfloat16") for plan in (full, w8, w8a8, more)]
    assert len({work.transformer_flops for work in works}) == 1
    blocks = 12 * D30.depth * D30.width**2
    assert works[0].weight_bytes - works[1].weight_bytes == blocks - 5 * D30.depth * (4 + 4 + 1) * D30.width
    assert works[2].weight_bytes == works[1].weight_bytes > works[3].weight_bytes
    assert works[1].steps[0].other_types == () and dict(works[2].steps[0].other_types).keys() == {"int8"}


def test_parts_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="parts is 'ffn/heads'; give one or more of attention, ffn, conditioning, ends"):
        rows.resolve("quant@w8:parts=ffn/heads", D30)


@pytest.mark.skipif(HAS_LIBRARY, reason="the extra varbench[quant] is installed")
def test_without_the_library_it_says_what_to_install(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match=r"quant needs the torchao library: pip install 'varbench\[quant\]'"):
        pipe.generate(LABELS, method="quant@w8")
