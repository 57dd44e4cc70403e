"""Attention that is written out says what torch's kernel says, and is seen and counted as that is."""

from __future__ import annotations

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from varbench import load_pipeline
from varbench.engine.kernel import attention_kernel
from varbench.model import attention as rule
from varbench.model.attention import WRITTEN_OUT, attention, is_written_out


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor that torch's kernel is faster on, and of few scores; in parts that end within a row."""
    monkeypatch.setattr(rule, "_WANTED", True)
    monkeypatch.setattr(rule, "FEWEST", 1)
    monkeypatch.setattr(rule, "PART", 3 * 4 * 9 * 14)


def drawn(*, entries: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """As the engine has them: queries with gaps between their heads, keys and values within a larger buffer."""
    torch.manual_seed(0)
    q = torch.randn(2, 9, 7, 16).mul(3).transpose(1, 2).bfloat16()
    k, v = (torch.randn(2, 7, entries + 5, 16).bfloat16()[:, :, :entries] for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@torch.inference_mode()
def test_it_is_as_exact_as_torchs_kernel(everywhere: None, masked: bool, scale: float) -> None:
    q, k, v = drawn()
    mask = torch.ones(9, 14, dtype=torch.bool).tril(5) if masked else None
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, scale=scale)
    torchs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    assert is_written_out(q, k)
    ours = attention(q, k, v, attn_mask=mask, scale=scale)
    assert ours.dtype == torch.bfloat16 and ours.shape == torchs.shape
    wrong = [float((one.float() - exact).norm() / exact.norm()) for one in (ours, torchs)]
    assert 0 < wrong[0] < 1.6 * wrong[1]


def test_other_types_and_gradients_are_torchs_own(everywhere: None) -> None:
    q, k, v = drawn()
    assert not is_written_out(q, k), "with gradients"
    with torch.inference_mode():
        assert not is_written_out(q.float(), k.float())
        one, other = (
            how(q.float(), k.float(), v.float(), scale=1.0) for how in (attention, F.scaled_dot_product_attention)
        )
        assert torch.equal(one, other)


@torch.inference_mode()
def test_its_products_are_counted(everywhere: None) -> None:
    with FlopCounterMode(display=False) as counter:
        attention(*drawn(), scale=1.0)
    assert counter.get_total_flops() == 4 * 2 * 7 * 9 * 14 * 16


def test_the_record_says_where_it_ran(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = models.pipeline(dtype="bfloat16")
    assert attention_kernel(lambda: pipe.generate(models.LABELS)).name == WRITTEN_OUT
    monkeypatch.setattr(rule, "FEWEST", models.SPEC.tokens[-1] * models.SPEC.length)
    names = (attention_kernel(lambda: pipe.generate(models.LABELS)).name or "").split(", ")
    assert names == ["scaled_dot_product_flash_attention_for_cpu", WRITTEN_OUT], "the last scale alone"
    monkeypatch.setattr(rule, "_WANTED", False)
    assert WRITTEN_OUT not in str(attention_kernel(lambda: pipe.generate(models.LABELS)).name)


def test_images_are_those_of_torchs_kernel_but_for_rounding(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load_pipeline("tiny", device="cpu", dtype="bfloat16")
    written = pipe.generate(range(8), seed=1, return_logits=True).logits
    tokens = pipe.generate(range(8), seed=1).tokens
    monkeypatch.setattr(rule, "_WANTED", False)
    kernels = pipe.generate(range(8), seed=1, tokens=tokens, return_logits=True).logits
    assert written is not None and kernels is not None
    assert float((written - kernels).norm() / kernels.norm()) < 0.02
