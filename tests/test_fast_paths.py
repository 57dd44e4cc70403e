"""What is done fast is what the plain way gives, within the rounding of the type."""

from __future__ import annotations

import math

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from varbench.engine.kernel import attention_kernel
from varbench.engine.sampler import _filtered_among_all, filtered
from varbench.model import c_kernels, fused, weighted
from varbench.model.tokenizer import Norm
from varbench.model.weighted import by_onednn, product

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative, in the norm; of bfloat16 half a unit in the last of its eight places."""
TYPES = pytest.mark.parametrize("dtype", list(ROUNDING))
LAST = torch.channels_last


def apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- products ---------------------------------------------------------------------------------------------------------


@TYPES
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_the_plain_one(dtype: torch.dtype, gelu: bool, has_bias: bool) -> None:
    whole, weight, bias = (t.to(dtype) for t in (numbers(3, 9, 64), numbers(48, 64), numbers(48)))
    x = whole[:, 2:]  # not all of a tensor, as where a step's last scale is taken
    exact = F.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    exact = F.gelu(exact, approximate="tanh") if gelu else exact
    with torch.inference_mode():
        assert by_onednn(x)
        made = product(x, weight, bias if has_bias else None, gelu=gelu)
    assert made.dtype == dtype
    assert apart(made, exact) < ROUNDING[dtype]


def test_float32_is_float32_whatever_others_allow() -> None:
    pipe = models.pipeline()
    honest = pipe.generate(models.LABELS)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # which lets oneDNN multiply in bfloat16 where that is faster
    try:
        made = pipe.generate(models.LABELS)
        assert torch.get_float32_matmul_precision() == "medium", "the setting is the user's"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(made.images, honest.images)


def test_training_gets_gradients() -> None:
    x, weight = numbers(4, 8).requires_grad_(), numbers(6, 8).requires_grad_()
    product(x, weight, None, gelu=True).sum().backward()
    assert weight.grad is not None
    assert x.grad is not None


def test_torch_counts_the_work() -> None:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        product(numbers(2, 5, 8), numbers(6, 8), None)
    assert counter.get_total_flops() == 2 * 2 * 5 * 8 * 6


# --- the decoder ------------------------------------------------------------------------------------------------------


def test_the_decoder_in_each_type_is_the_plain_one() -> None:
    maps = 0.1 * numbers(3, models.TOKENIZER.code_dim, 8, 8)
    with torch.inference_mode():
        plain = models.tokenizer().decode_map(maps)
        exact, rounded = (
            models.tokenizer().cast_decoder_(dtype).decode_map(maps) for dtype in (torch.float32, torch.bfloat16)
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            official = models.tokenizer().decode_map(maps)
    assert apart(exact, plain) < 1e-5
    assert not torch.equal(rounded, plain), "bfloat16 was not used"
    assert apart(rounded, plain) < 1.2 * apart(official, plain), "worse than the official way of rounding"
    assert all(made.dtype == torch.float32 and made.is_contiguous() for made in (exact, rounded))


@pytest.mark.parametrize(("channels", "side"), [(64, 8), (64, 40), (320, 8)])
def test_a_norm_is_torchs_in_every_layout(channels: int, side: int) -> None:
    norm, x = Norm(channels).requires_grad_(False), numbers(2, channels, side, side).bfloat16()
    made = norm(x.contiguous(memory_format=LAST))
    assert made.is_contiguous(memory_format=LAST)
    assert apart(made, F.group_norm(x.double(), 32, eps=1e-6)) < ROUNDING[torch.bfloat16]


def test_what_encodes_stays_float32() -> None:
    pipe = models.pipeline(dtype="bfloat16")
    images = numbers(2, 3, pipe.model.image_side, pipe.model.image_side).clamp(-1, 1)
    assert torch.equal(pipe.encode(images), models.pipeline().encode(images))


def test_the_record_says_what_computed() -> None:
    pipe = models.pipeline(dtype="bfloat16")
    assert attention_kernel(lambda: pipe.generate(models.LABELS)).arithmetic == (
        "products bfloat16 by oneDNN; convolutions bfloat16 channels last, float32 channels last"
        + ("; passes in C" if c_kernels.there(torch.bfloat16) else "")
    )


# --- the loop ---------------------------------------------------------------------------------------------------------


@TYPES
def test_queries_and_keys_are_normalised_as_by_torch(dtype: torch.dtype) -> None:
    attention = models.transformer(models.SPEC).cast_(dtype).block(1).attn
    x = numbers(3, 7, models.SPEC.width).to(dtype)
    x[0, 0] = 0  # whose values are the bias alone
    with torch.inference_mode():
        q, k, v = attention.qkv(x, dtype)
        bias = torch.cat((attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias))
        plain = product(x, attention.mat_qkv.weight, bias.to(dtype)).view(3, 7, 3, models.SPEC.heads, -1)
        plain_q, plain_k, plain_v = plain.permute(2, 0, 3, 1, 4).unbind(0)
        scale = attention.scale_mul_1H11.clamp_max(math.log(100)).exp()
    assert apart(q, F.normalize(plain_q.float(), dim=-1) * scale) < ROUNDING[dtype]
    assert apart(k, F.normalize(plain_k.float(), dim=-1)) < 1e-6
    assert (k.dtype, q.dtype) == (torch.float32, dtype)
    assert torch.equal(v, plain_v)


def test_a_layers_norm_is_torchs_to_the_bit_and_has_gradients() -> None:
    x = numbers(2, 9, 72)
    with torch.inference_mode():
        assert torch.equal(fused.normed(x), F.layer_norm(x, (72,), eps=fused.EPS))
    x.requires_grad_()  # after generation has made what both are given
    fused.normed(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize("keys", [torch.float32, torch.bfloat16])
def test_queries_and_keys_have_gradients_and_the_same_bits_without(keys: torch.dtype) -> None:
    scale, qkv = torch.full((1, 2, 1, 1), 1.5), numbers(2, 5, 3, 2, 8)
    given = qkv.clone().requires_grad_()
    with_gradients = fused.unit_queries_and_keys(given, scale, torch.bfloat16, keys)
    sum(part.float().square().sum() for part in with_gradients).backward()  # type: ignore[union-attr]
    before = qkv.clone()
    with torch.inference_mode():
        without = fused.unit_queries_and_keys(qkv, scale, torch.bfloat16, keys)
    assert [part.dtype for part in without] == [torch.bfloat16, keys]
    assert all(torch.equal(a, b) for a, b in zip(with_gradients, without, strict=True))
    assert torch.equal(qkv, before), "what is multiplied where it lies is a copy"


# --- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.0, 0.05, 1.0])
def test_filtering_among_the_likeliest_is_filtering_among_all(step: float) -> None:
    """Also where logits come in steps, as those in bfloat16 do, and many tie with the k-th."""
    logits, least_share = 2.5 * numbers(4, 50, 4096), 1 - 0.96
    logits = (logits / step).round() * step if step else logits
    ours = filtered(logits, top_k=900, top_p=0.96)
    kept_of_900 = logits.masked_fill(logits < logits.sort(dim=-1).values[..., -900:][..., :1], -torch.inf)
    likely = kept_of_900.double().softmax(dim=-1)
    dropped = (ours == -torch.inf) & (likely > 0)
    assert torch.equal(ours[~dropped], kept_of_900[~dropped])
    assert float((likely * dropped).sum(dim=-1).max()) <= least_share + 1e-6, "too much was dropped"
    least_kept = likely.masked_fill(ours == -torch.inf, 2).amin(dim=-1)
    assert bool(((likely * dropped).sum(dim=-1) + least_kept > least_share - 1e-6).all()), "more could be dropped"
    assert bool(((likely * dropped).amax(dim=-1) <= least_kept).all()), "something likelier was dropped"
    share = float((ours == _filtered_among_all(logits, top_k=900, top_p=0.96)).float().mean())
    assert share > (0.99999 if step == 0 else 0.99), "which of equally likely codes go is open, and nothing else"


def test_a_token_is_filtered_alike_in_any_company() -> None:
    logits = 2.5 * numbers(2, 3, 4096)
    logits[0, 1] = logits[0, 1].round()  # whose ties are more than are looked at
    whole = filtered(logits, top_k=900, top_p=0.96)
    for image, token in ((0, 0), (0, 1), (1, 2)):
        alone = filtered(logits[image : image + 1, token : token + 1], top_k=900, top_p=0.96)
        assert torch.equal(alone[0, 0], whole[image, token])


@TYPES
def test_a_part_of_a_matrix_is_laid_out_before_it_is_multiplied(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN takes weights with gaps between their rows by a way that is hundreds of times slower."""
    x, part, given = numbers(64, 32).to(dtype), numbers(256, 1024).to(dtype)[:, 32:64], []
    real = weighted._onednn
    monkeypatch.setattr(weighted, "_onednn", lambda x, weight, *more: given.append(weight) or real(x, weight, *more))
    with torch.inference_mode():
        made = product(x, part, None)
    assert [weight.is_contiguous() for weight in given] == [True]
    assert apart(made, x.double() @ part.double().T) < 2 * ROUNDING[dtype]
