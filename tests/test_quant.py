"""Matrices in eight bits: what is stored and declared, against rounding written out; skipped where torchao is not installed."""

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
from varbench.engine.transforms import stored, transformed
from varbench.errors import UserError
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import hardware
from varbench.plan.sizes import backbone_bytes
from varbench_plugins import quant

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
    assert backbone_bytes(plan, "main", "float32") == pytest.approx(held, rel=0.003)
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


def test_the_plan_of_float8_has_its_bytes_and_its_type() -> None:
    """A byte for each number, and a scale for each row; products at the rate of float8, where a card has one."""
    full, fp8 = (compile_plan(D30, rows.resolve(text, D30).policies) for text in ("full_var", "quant@fp8"))
    before, after = (cost.work(plan, batch=64, dtype="bfloat16") for plan in (full, fp8))
    blocks = 12 * D30.depth * D30.width**2
    assert before.weight_bytes - after.weight_bytes == blocks - 4 * D30.depth * (4 + 4 + 1) * D30.width
    assert dict(after.steps[0].other_types).keys() == {"float8_e4m3fn"}
    assert after.transformer_flops == before.transformer_flops
    seconds = {
        card: [cost.predict(work, hardware(card)).transformer for work in (before, after)]
        for card in ("L20", "A100-SXM-80GB")
    }
    assert seconds["L20"][1] < 0.7 * seconds["L20"][0]
    assert seconds["A100-SXM-80GB"][1] > 0.9 * seconds["A100-SXM-80GB"][0], "which has no rate for it"


def test_a_cpu_is_refused_by_name_and_no_default_run_asks_it(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match=r"quant@fp8 needs a GPU of compute capability 8\.9 or more, and this is a CPU"):
        pipe.generate(LABELS, method="quant@fp8")
    assert [row.name for row in rows.expand("quant", D30)] == ["quant@w8", "quant@w8a8"]


def test_a_gpu_without_float8_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match="and this is NVIDIA A100-SXM4-80GB; give quant@w8 or quant@w8a8 here"):
        quant.check_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    quant.check_device(torch.device("cuda"))


@pytest.fixture
def on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch multiplies float8 on a CPU as on a card, since 2.12 with a scale for each row: only we and the library refuse to."""
    from torchao.quantization import quant_api

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
        pytest.skip("this torch's CPU has one scale for a whole matrix of float8")
    monkeypatch.setattr(quant, "check_device", lambda device: None)
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)


@library
@pytest.mark.usefixtures("on_any_device")
def test_a_layer_of_float8_by_its_rule_and_its_bytes() -> None:
    pipe = models.pipeline(dtype="bfloat16")
    plain: Any = pipe.backbones["main"]
    changed: Any = quant.quantised(transformed(plain, ()), point="fp8", parts=("attention", "ffn"))
    linear, ours = plain.blocks[2].ffn.fc1, changed.blocks[2].ffn.fc1
    x = torch.randn(2, 9, models.SPEC.width, generator=torch.Generator().manual_seed(3)).bfloat16()
    weight, scales = in_float8(linear.weight)
    whole, steps = in_float8(x)
    theirs = (whole @ weight.T) * scales.T * steps + linear.bias.float()
    exact = nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float())
    assert (ours(x) - theirs).abs().max() < 0.2 * (exact - theirs).abs().max()
    held = storage_bytes(stored(changed))
    assert backbone_bytes(pipe.compile("quant@fp8")[0], "main", "bfloat16") == pytest.approx(held, rel=0.003)


def in_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """To the nearest of e4m3, whose largest is 448, each row by its own scale, which is rounded to the compute type."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / 448).float()
    return (x.float() / scale).to(torch.float8_e4m3fn).float(), scale


@library
@pytest.mark.usefixtures("on_any_device")
@pytest.mark.parametrize(
    ("dtype", "parts", "message"),
    [
        ("float16", "attention", "give --dtype bfloat16"),
        ("bfloat16", "ends", "multiples of 16, and a matrix of ends is 64 x 8; leave its part out of parts"),
    ],
)
def test_what_float8_is_not_made_for_is_told(dtype: str, parts: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.pipeline(dtype=dtype).backbones_of(f"quant@fp8:parts={parts}")


def test_parts_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="parts is 'ffn/heads'; give one or more of attention, ffn, conditioning, ends"):
        rows.resolve("quant@w8:parts=ffn/heads", D30)


@pytest.mark.skipif(HAS_LIBRARY, reason="the extra varbench[quant] is installed")
def test_without_the_library_it_says_what_to_install(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match=r"quant needs the torchao library: pip install 'varbench\[quant\]'"):
        pipe.generate(LABELS, method="quant@w8")
