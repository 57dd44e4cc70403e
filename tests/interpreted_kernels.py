"""What `test_triton_kernels` runs within the interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from varbench.engine.sampler import _without_tail, draw
from varbench.model import fused, triton_drawing, triton_kernels

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# The interpreter cuts bfloat16 off, where a GPU rounds.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(ours: torch.Tensor, plain: torch.Tensor) -> float:
    return float((ours.double() - plain.double()).abs().max() / plain.double().abs().max())


@TYPES
@pytest.mark.parametrize("width", [64, 96])
def test_modulated(dtype: torch.dtype, width: int) -> None:
    x, scale, shift = 3 + 2 * numbers(3, 5, width), numbers(3, 1, width, seed=1), numbers(3, 1, width, seed=2)
    made = triton_kernels.modulated(x, scale, shift, dtype, eps=fused.EPS)
    assert made.dtype == dtype
    assert apart(made, fused.modulated(x, scale, shift, torch.float32)) < ROUNDING[dtype]


@TYPES
def test_what_is_added_first(dtype: torch.dtype) -> None:
    x, given = 3 + 2 * numbers(3, 5, 96), numbers(3, 5, 96, seed=3).to(dtype)
    # Of several vectors that lie together, as conditioning has them.
    six = numbers(3, 1, 6, 96, seed=1).to(dtype)
    gamma, _, scale, _, shift, _ = six.unbind(2)
    plain = x.clone()
    exact = fused.modulated(plain, scale, shift, torch.float32, added=(given, gamma))
    made = triton_kernels.modulated(x, scale, shift, dtype, eps=fused.EPS, added=(given, gamma))
    assert apart(x, plain) < (ROUNDING[dtype] if dtype == torch.bfloat16 else 1e-6)
    assert apart(made, exact) < 2 * ROUNDING[dtype]
    turned = given.transpose(1, 2).contiguous().transpose(1, 2)  # as what a plugin put in a layer's place may give it
    x = 3 + 2 * numbers(3, 5, 96)
    made = triton_kernels.modulated(x, scale, shift, dtype, eps=fused.EPS, added=(turned, gamma))
    assert apart(made, exact) < 2 * ROUNDING[dtype]


@TYPES
@pytest.mark.parametrize("gate", [None, torch.float32])
def test_add_gated(dtype: torch.dtype, gate: torch.dtype | None) -> None:
    """A gate of float32, as where all layers share one AdaLN, leaves the product as it is."""
    x, given = numbers(3, 5, 96), numbers(3, 5, 96, seed=1).to(dtype)
    gamma, scale = numbers(3, 1, 96, seed=2).to(gate or dtype), numbers(3, 1, 96, seed=3)
    plain, other = x.clone(), x.clone()
    plain.add_(given * gamma)
    triton_kernels.add_gated_(x, given, gamma)
    triton_kernels.modulated(other, scale, scale, dtype, eps=fused.EPS, added=(given, gamma))
    for made in (x, other):
        assert apart(made, plain) < (ROUNDING[dtype] if dtype == torch.bfloat16 and gate is None else 1e-6)


@TYPES
@pytest.mark.parametrize("keys", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [3, 4])
def test_unit_queries_and_keys(dtype: torch.dtype, keys: torch.dtype, heads: int) -> None:
    qkv, scale = numbers(2, 5, 3, heads, 16).to(dtype), 4 + numbers(1, heads, 1, 1)
    qkv[0, 0] = 0
    made = triton_kernels.unit_queries_and_keys(
        qkv, scale, dtype, keys, shortest=fused.SHORTEST, most=fused.MAX_LOG_SCALE
    )
    plain = fused.unit_queries_and_keys(qkv, scale, torch.float32, torch.float32)
    for ours, its, type_ in zip(made, plain, (dtype, keys), strict=True):
        assert (ours.dtype, ours.shape) == (type_, its.shape)
        assert apart(ours, its) < ROUNDING[type_]


@pytest.mark.parametrize("heads", [3, 4])
def test_keys_and_values_are_put_where_they_stay(heads: int) -> None:
    qkv, scale = numbers(2, 5, 3, heads, 16), 4 + numbers(1, heads, 1, 1)
    keys, values = torch.zeros(2, heads, 9, 16), torch.zeros(2, heads, 9, 16)
    into = keys[:, :, 2:7], values[:, :, 2:7]
    q, k = triton_kernels.unit_queries_and_keys(
        qkv, scale, torch.float32, torch.float32, shortest=fused.SHORTEST, most=fused.MAX_LOG_SCALE, into=into
    )
    plain_q, plain_k = fused.unit_queries_and_keys(qkv, scale, torch.float32, torch.float32)
    assert apart(q, plain_q) < 1e-6 and apart(keys[:, :, 2:7], plain_k) < 1e-6
    assert k.data_ptr() == into[0].data_ptr()
    assert torch.equal(values[:, :, 2:7], qkv[:, :, 2].transpose(1, 2))
    assert not keys[:, :, :2].any() and not keys[:, :, 7:].any() and not values[:, :, 7:].any()


@pytest.mark.parametrize("heads", [3, 4])
def test_put(heads: int) -> None:
    source = numbers(2, 5, heads, 16).transpose(1, 2)
    into = torch.zeros(2, heads, 9, 16)
    triton_kernels.put(source, into[:, :, 3:8])
    assert torch.equal(into[:, :, 3:8], source) and not into[:, :, :3].any() and not into[:, :, 8:].any()


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("channels", "side"), [(160, 5), (32, 40), (320, 3)])
def test_group_norm(channels: int, side: int, silu: bool) -> None:
    x = (2 + numbers(2, channels, side, side)).contiguous(memory_format=torch.channels_last)
    weight, bias = numbers(channels, seed=1), numbers(channels, seed=2)
    made = triton_kernels.group_norm_silu(x, weight, bias, groups=32, eps=1e-6, silu=silu)
    exact = F.group_norm(x, 32, weight, bias, 1e-6)
    assert apart(made, F.silu(exact) if silu else exact) < 2e-5
    assert made.is_contiguous(memory_format=torch.channels_last)


def drawn_plainly(logits: torch.Tensor, noise: torch.Tensor, *, top_k: int, top_p: float) -> torch.Tensor:
    """By a sort; of equally likely codes the first ones go."""
    least = logits.sort(dim=-1).values[..., -top_k:][..., :1]
    left = logits.masked_fill(logits < least, -torch.inf) if top_k else logits
    if top_p:
        ordered, places = left.sort(dim=-1, stable=True)
        left = torch.full_like(left, -torch.inf).scatter_(-1, places, _without_tail(ordered, top_p))
    return draw(left, noise)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.0), (20, 0.0), (0, 0.7), (20, 0.9), (1, 0.0), (20, 1e-9), (200, 1.0)]
)
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_drawn(top_k: int, top_p: float, step: float) -> None:
    """Also where logits come in steps, and many are as likely as the k-th."""
    logits = 2.5 * numbers(2, 30, 100)
    logits = (logits / step).round() * step if step else logits
    noise = torch.rand(2, 30, generator=torch.Generator().manual_seed(3))
    noise[0, 0], noise[0, 1] = 0, 1 - 2**-24
    ours = triton_drawing.drawn(logits, noise, top_k=top_k, top_p=top_p)
    assert torch.equal(ours, drawn_plainly(logits, noise, top_k=top_k, top_p=top_p))


def test_where_nothing_can_be_drawn() -> None:
    logits = numbers(1, 4, 10)
    logits[0, 0, 3], logits[0, 1, 3], logits[0, 2, :] = torch.nan, torch.inf, -torch.inf
    codes = triton_drawing.drawn(logits, torch.full((1, 4), 0.5), top_k=3, top_p=0.9)
    assert codes[0, :3].tolist() == [10, 10, 10] and codes[0, 3] < 10


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.0), (0, 0.9), (300, 0.9)])
@pytest.mark.parametrize("shift", [-60.0, 0.0, 60.0])
def test_drawn_where_numbers_lie_close_or_far_apart(top_k: int, top_p: float, shift: float) -> None:
    """Halving their range takes many turns, and its ends lie far from any of them. All are about as likely, so another filter draws
    other codes."""
    some = torch.rand(1, 16, 1000, generator=torch.Generator().manual_seed(1))
    logits = shift + numbers(1, 16, 1000).sign() * 10 ** (some * 27 - 29)
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(3))
    ours = triton_drawing.drawn(logits, noise, top_k=top_k, top_p=top_p)
    assert (
        ours == drawn_plainly(logits, noise, top_k=top_k, top_p=top_p)
    ).float().mean() > 0.8  # sums of other order differ where shares are alike
