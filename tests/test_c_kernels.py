"""Our kernels for a CPU give what torch's operators give, in every way that they can be compiled; and where they cannot, all runs
without them and says so."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import models
import pytest
import torch
import torch.nn.functional as F
from scripted import a_run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from varbench import load_pipeline
from varbench.base import compiled
from varbench.engine import trained_layer
from varbench.engine.kernel import attention_kernel
from varbench.model import c_kernels, fused
from varbench.model.attention import attention, is_in_c
from varbench.model.weighted import product
from varbench.run import identity

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative, in the norm; of bfloat16 half a unit in the last of its eight places."""
TYPES = pytest.mark.parametrize("dtype", list(ROUNDING))
WAYS = {"as it is": (), "vectors": ("-mno-amx-bf16",), "no bfloat16": ("-mno-amx-bf16", "-mno-avx512bf16"), "any": None}
"""How the processor is told of to the compiler; None is a processor of 2003."""

pytestmark = pytest.mark.usefixtures("needs_kernels")


@pytest.fixture(params=WAYS)
def each_way(request: pytest.FixtureRequest, needs_kernels: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels as another processor would have them."""
    flags = WAYS[request.param]
    monkeypatch.setattr(c_kernels, "processor_has", lambda feature: False)
    if flags is None:
        flags = tuple(flag for flag in compiled._FLAGS if not flag.startswith(("-march", "-mprefer")))
    else:
        flags = (*compiled._FLAGS, *flags)
    monkeypatch.setattr(compiled, "_FLAGS", flags)
    c_kernels.forget()
    yield request.param
    c_kernels.forget()


def apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- generation -------------------------------------------------------------------------------------------------------


@TYPES
@pytest.mark.parametrize(("width", "gate"), [(72, None), (128, None), (128, torch.float32)])
@torch.inference_mode()
def test_what_a_sub_layer_gave_is_added_and_the_stream_normed(
    each_way: str, dtype: torch.dtype, width: int, gate: torch.dtype | None
) -> None:
    """Gates are float32 where all layers share one AdaLN."""
    x, given, gamma = numbers(3, 7, width), numbers(3, 7, width).to(dtype), numbers(3, 1, width).to(gate or dtype)
    scale, shift = numbers(3, 1, width + 1)[..., 1:], numbers(3, 1, width).to(dtype)
    stream = x + given * gamma
    exact = F.layer_norm(stream, (width,), eps=fused.EPS) * scale + shift
    own = x.clone()
    made = fused.modulated(own, scale, shift, dtype, added=(given, gamma))
    assert torch.equal(own, stream), "what policies see has the bits of the plain way"
    assert made.dtype == dtype and apart(made, exact) < ROUNDING[dtype]
    alone = fused.modulated(stream, scale, shift, dtype)
    assert torch.equal(alone, made)
    again = x.clone()
    fused.add_gated_(again, given, gamma)
    assert torch.equal(again, stream)
    wider = fused.modulated(x.clone(), scale, shift, torch.float32, added=(given, gamma))
    assert wider.dtype == torch.float32 and apart(wider, exact) < 1e-6, "the gated is rounded as it was given"


@torch.inference_mode()
def test_what_is_no_stream_is_torchs_own() -> None:
    """Numbers for each token, a stream of another type or with gaps, and outputs that are one for all tokens."""
    x, given, gamma = numbers(3, 7, 64), numbers(3, 7, 64).bfloat16(), numbers(3, 1, 64).bfloat16()
    vectors = numbers(3, 7, 64), numbers(7, 64), numbers(1, 1, 64), numbers(64)
    for vector in vectors:
        exact = F.layer_norm(x, (64,), eps=fused.EPS) * vector + vector
        assert apart(fused.modulated(x, vector, vector, torch.float32), exact) < 1e-6
    for stream in (x.bfloat16(), x.double(), x.transpose(0, 1), x[:, ::2]):
        part = (
            given.to(stream.dtype)[: len(stream), : stream.shape[1]].expand(len(stream), -1, -1)
            if len(stream) == 3
            else (given.transpose(0, 1))
        )
        gate = gamma.expand(3, 7, 64).transpose(0, 1) if len(stream) == 7 else gamma
        own = stream.clone(memory_format=torch.preserve_format)
        fused.add_gated_(own, part, gate)
        assert torch.equal(own, stream + part * gate)
    for one in (given[:1, :1], given[:, :1]):
        own = x.clone()
        fused.add_gated_(own, one, gamma)
        assert torch.equal(own, x + one * gamma)
        own = x.clone()
        made = fused.modulated(own, gamma, gamma, torch.bfloat16, added=(one, gamma))
        assert torch.equal(own, x + one * gamma) and made.shape == x.shape
    q = numbers(2, 4, 9, 32).bfloat16()
    assert c_kernels.attends(q, q, q) is (c_kernels._attends() is not None)
    for k in (q.float(), q[:1], q[:, :1], q.transpose(2, 3)):
        assert not c_kernels.attends(q, k, k)


def test_a_compiler_of_torchs_sees_plain_operators_and_sizes_alone_have_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, vector = numbers(2, 3, 64), numbers(2, 1, 64)
    q = x.view(2, 3, 2, 32).transpose(1, 2).bfloat16()
    with FakeTensorMode() as fake, torch.inference_mode():
        made = fused.modulated(fake.from_tensor(x), *(fake.from_tensor(vector) for _ in "ab"), torch.bfloat16)
        q = fake.from_tensor(q)
        mixed = attention(q, q, q, scale=1.0)
    assert (made.shape, made.dtype, mixed.shape) == (x.shape, torch.bfloat16, q.shape)

    def asked(dtype: torch.dtype) -> bool:
        raise AssertionError("it looks for a library while it is traced")

    monkeypatch.setattr(c_kernels, "there", asked)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert fused.kernels(x, x.dtype) is None


@TYPES
@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("keys", [None, torch.float32])
@torch.inference_mode()
def test_queries_and_keys_get_their_length(
    each_way: str, dtype: torch.dtype, size: int, keys: torch.dtype | None
) -> None:
    qkv, scale = numbers(2, 5, 3, 4, size).to(dtype), numbers(1, 4, 1, 1)
    qkv[0, 0, 0, 0] = 0
    keys = keys or dtype
    q, k = fused.unit_queries_and_keys(qkv, scale, dtype, keys)
    parts = qkv.float().permute(2, 0, 3, 1, 4)
    assert (q.dtype, k.dtype) == (dtype, keys)
    assert apart(q, F.normalize(parts[0], dim=-1) * scale.exp()) < ROUNDING[dtype]
    assert apart(k, F.normalize(parts[1], dim=-1)) < ROUNDING[keys]
    room = torch.zeros(2, 2, 4, 9, size, dtype=dtype)
    q_too, k_too = fused.unit_queries_and_keys(qkv, scale, dtype, dtype, into=(room[0, :, :, 4:], room[1, :, :, 4:]))
    assert torch.equal(q_too, q) and k_too.data_ptr() == room[0, :, :, 4:].data_ptr()
    assert apart(k_too, F.normalize(parts[1], dim=-1)) < ROUNDING[dtype]
    assert torch.equal(room[1, :, :, 4:].float(), parts[2])
    assert not room[:, :, :, :4].any()


@torch.inference_mode()
def test_gelu_is_the_tanh_form_at_every_number(each_way: str) -> None:
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = halves[halves.isfinite()][:-3].contiguous()
    if not c_kernels.activates(x):
        assert each_way in ("no bfloat16", "any")
        pytest.skip("this processor multiplies no bfloat16 vectors")
    made = x.clone()
    c_kernels.gelu_(made)
    wide = x.double()
    exact = wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    near = (made.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-28
    assert near.all(), x[~near]
    nan = torch.full((3,), torch.nan, dtype=torch.bfloat16)
    c_kernels.gelu_(nan)
    assert nan.isnan().all()


SHAPES = [(2, 3, 1, 1, 32), (2, 3, 9, 14, 32), (1, 2, 16, 32, 64), (2, 1, 33, 47, 64), (1, 2, 40, 129, 96)]


@pytest.mark.parametrize(("rows", "heads", "length", "entries", "size"), SHAPES)
@pytest.mark.parametrize("scale", [1.0, 0.25])
@torch.inference_mode()
def test_attention_is_as_exact_as_torchs_kernel(
    each_way: str, rows: int, heads: int, length: int, entries: int, size: int, scale: float
) -> None:
    """Keys and values in a larger buffer, behind whose last entry there is none, and queries token by token."""
    q = numbers(rows, length, heads, size).mul(3).transpose(1, 2).bfloat16()
    k, v = (numbers(rows, heads, entries + part, size).bfloat16()[:, :, part:] for part in (1, 2))
    if not is_in_c(q, k, v, masked=False):
        assert each_way in ("no bfloat16", "any")
        pytest.skip("this processor multiplies no bfloat16 vectors")
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    torchs = F.scaled_dot_product_attention(q, k, v, scale=scale)
    with FlopCounterMode(display=False) as counter:
        ours = attention(q, k, v, scale=scale)
    assert ours.shape == torchs.shape and ours.dtype == torch.bfloat16
    assert apart(ours, exact) <= 1.2 * apart(torchs, exact) + 1e-6
    assert counter.get_total_flops() == 4 * rows * heads * length * entries * size
    assert ours.transpose(1, 2).is_contiguous(), "it is projected as it lies"
    v[0, 0, 0, 0] = torch.nan
    assert attention(q, k, v, scale=scale)[0, 0, :, 0].isnan().all(), "what is no number is not hidden"


@torch.inference_mode()
def test_a_token_is_the_same_whatever_else_is_computed_and_by_how_many_threads() -> None:
    q = numbers(6, 40, 4, 32).transpose(1, 2).bfloat16()
    k, v = numbers(6, 4, 60, 32).bfloat16(), numbers(6, 4, 60, 32).bfloat16()
    x, vector = numbers(6, 40, 128), numbers(6, 1, 128)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((attention(q, k, v, scale=1.0), fused.modulated(x, vector, vector, torch.bfloat16)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(attention(q[2:4], k[2:4], v[2:4], scale=1.0), found[0][0][2:4])
    assert torch.equal(attention(q[:, :, 7:8], k, v, scale=1.0), found[0][0][:, :, 7:8])


@torch.inference_mode()
def test_onednn_multiplies_as_before_after_tiles_were_used() -> None:
    """It sets them up itself, and remembers that it did."""
    x, weight = numbers(64, 128).bfloat16(), numbers(256, 128).bfloat16()
    q = numbers(4, 9, 4, 32).transpose(1, 2).bfloat16()
    before = product(x, weight, None)
    for _ in range(3):
        attention(q, q, q, scale=1.0)
        assert torch.equal(product(x, weight, None), before)
        assert torch.equal(torch.mm(x, weight.t()), before)


def test_images_are_those_without_them_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, limit in (("float32", 2e-6), ("bfloat16", 0.02)):
        pipe = load_pipeline("tiny", device="cpu", dtype=dtype)
        made = pipe.generate(range(8), seed=1, return_logits=True)
        with monkeypatch.context() as patch:
            patch.setattr(c_kernels, "there", lambda dtype: False)
            plain = pipe.generate(range(8), seed=1, tokens=made.tokens, return_logits=True)
        assert made.logits is not None and plain.logits is not None
        assert 0 < apart(made.logits, plain.logits) < limit


def test_the_record_says_that_they_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load_pipeline("tiny", device="cpu", dtype="bfloat16")
    found = attention_kernel(lambda: pipe.generate([1]))
    assert found.arithmetic.endswith("; passes in C")
    assert c_kernels._attends() is None or found.name == c_kernels.attention_name()
    monkeypatch.setattr(c_kernels, "there", lambda dtype: False)
    found = attention_kernel(lambda: pipe.generate([1]))
    assert "in C" not in f"{found.arithmetic} {found.name}"


# --- training ---------------------------------------------------------------------------------------------------------


def gradients(dtype: torch.dtype) -> list[Tensor]:
    """Of a layer's output, and of all that it depends on, in float32."""
    block = models.transformer(models.SPEC).block(1).requires_grad_()
    x = numbers(3, 13, models.SPEC.width).requires_grad_()
    vectors = [numbers(3, 1, models.SPEC.width + at)[..., at:].to(dtype).requires_grad_() for at in range(6)]
    mask = torch.ones(13, 13, dtype=torch.bool).tril(3)
    made = trained_layer.trained_layer(x, block, tuple(vectors), mask, dtype, trained_layer.explicit_attention)
    parameters = [parameter for name, parameter in block.named_parameters() if "ada" not in name]
    found = torch.autograd.grad((made * numbers(*made.shape)).sum(), [x, *vectors, *parameters])
    return [made.detach(), *(gradient.float() for gradient in found)]


@TYPES
def test_gradients_are_as_exact_as_torchs(each_way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gradients(dtype)
    monkeypatch.setattr(c_kernels, "there", lambda dtype: False)
    plain, exact = gradients(dtype), gradients(torch.float32)
    assert len(ours) > 12
    for one, other, right in zip(ours, plain, exact, strict=True):
        assert apart(one, right) <= 1.3 * apart(other, right) + 1e-5
    assert not all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True)), "nothing was done in C"


@TYPES
def test_a_layer_trains_without_its_attention_or_its_ffn(dtype: torch.dtype) -> None:
    block = models.transformer(models.SPEC).block(1)
    vectors = tuple(numbers(2, 1, models.SPEC.width) for _ in range(6))
    for mask, feeds in ((None, True), (torch.ones(5, 5, dtype=torch.bool), False)):
        x = numbers(2, 5, models.SPEC.width).requires_grad_()
        made = trained_layer.trained_layer(
            x, block, vectors, mask, dtype, trained_layer.explicit_attention, feeds=feeds
        )
        made.sum().backward()
        assert x.grad is not None and not torch.equal(x.grad, torch.ones_like(x))


def test_a_compiler_that_knows_no_tiles_leaves_attention_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that has them: there torch's kernel is the faster one."""
    q = numbers(1, 2, 4, 32).bfloat16()
    monkeypatch.setattr(c_kernels, "processor_has", lambda feature: True)
    flags = (*compiled._FLAGS, "-mno-amx-bf16")
    monkeypatch.setattr(compiled, "_FLAGS", flags)
    c_kernels.forget()
    assert c_kernels.there(q.dtype) and not c_kernels.attends(q, q, q)
    c_kernels.forget()


def test_gradients_are_the_same_whatever_torch_makes_by_default() -> None:
    def of_a_norm() -> tuple[Tensor, ...]:
        x, gain = given[0].requires_grad_(), given[1].requires_grad_()
        stream, made = trained_layer._norm(x, gain, gain, torch.bfloat16)
        return torch.autograd.grad((trained_layer._sum(stream, made, gain)).sum(), (x, gain))

    given = numbers(2, 5, 64), numbers(2, 1, 64)
    before = of_a_norm()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            after = of_a_norm()
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    x, gain = numbers(2, 5, 64).requires_grad_(), numbers(2, 1, 64)
    with torch.device("meta"):
        stream, made = trained_layer._norm(x, gain, gain, torch.float32)
        (stream + made).sum().backward()
    assert made.device.type == "cpu" and x.grad is not None and x.grad.isfinite().all()


def test_a_gradients_gradient_is_refused() -> None:
    x, gain = numbers(2, 5, 64).requires_grad_(), numbers(2, 1, 64)
    _, made = trained_layer._norm(x, gain, gain, torch.float32)
    (gradient,) = torch.autograd.grad(made.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- compiling --------------------------------------------------------------------------------------------------------


def alone(code: str, **variables: str) -> str:
    """What a process says that has found nothing yet."""
    environment = {"PATH": "", "HOME": "/nowhere", "PYTHONPATH": ":".join(sys.path), **variables}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


GENERATE = (
    "from varbench import load_pipeline; from varbench.model import c_kernels; "
    "pipe = load_pipeline('tiny', device='cpu', dtype='bfloat16'); "
    "print(tuple(pipe.generate([1]).images.shape), c_kernels.described())"
)


def test_a_machine_without_a_compiler_generates_and_says_so(tmp_path: Path) -> None:
    said = alone(GENERATE, XDG_CACHE_HOME=str(tmp_path))
    assert said == "(1, 3, 32, 32) no C compiler (cc, gcc, clang) was found"
    assert not (tmp_path / "varbench/kernels").exists()


@pytest.mark.parametrize("failing", ["#!/bin/sh\necho 'cc: no such option' >&2; exit 1", "#!/bin/sh\ntouch none"])
def test_a_compiler_that_fails_is_no_error(tmp_path: Path, failing: str) -> None:
    compiler = tmp_path / "bin/cc"
    compiler.parent.mkdir()
    compiler.write_text(f"{failing}\n")
    compiler.chmod(0o755)
    said = alone(GENERATE, XDG_CACHE_HOME=str(tmp_path), PATH=str(compiler.parent))
    assert said.startswith(f"(1, 3, 32, 32) {compiler} failed: "), said
    assert list((tmp_path / "varbench/kernels").iterdir()) == []


def test_it_compiles_once_and_anew_for_other_code_or_another_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "kernels.c"
    source.write_text("int answer(void) { return 41; }\n")
    monkeypatch.setattr(compiled, "SOURCE", source)
    calls: list[object] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: calls.append(args) or run(*args, **kwargs))

    def answer() -> int:
        compiled.compiled.cache_clear()
        library = compiled.compiled().library
        assert isinstance(library, ctypes.CDLL)
        return int(library.answer())

    try:
        assert (answer(), len(calls)) == (41, 2)
        assert (answer(), len(calls)) == (41, 2), "kept"
        source.write_text("int answer(void) { return 42; }\n")
        assert (answer(), len(calls)) == (42, 4)
        other = tmp_path / "bin/cc"
        other.parent.mkdir()
        other.write_text(f'#!/bin/sh\nexec {shutil.which("cc")} "$@"\n')
        other.chmod(0o755)
        before = compiled.compiled().key
        monkeypatch.setenv("PATH", f"{other.parent}:/usr/bin:/bin")
        assert (answer(), len(calls)) == (42, 6)
        assert compiled.compiled().key != before
    finally:
        compiled.compiled.cache_clear()


def test_what_a_crash_left_is_made_again(tmp_path: Path) -> None:
    there = {"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    said = alone(GENERATE, **there)
    (kept,) = (tmp_path / "varbench/kernels").glob("*.so")
    kept.write_bytes(b"")
    assert alone(GENERATE, **there) == said and "compiled by" in said
    assert kept.stat().st_size > 0


def test_a_folder_that_nobody_has_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    compiled.compiled.cache_clear()
    try:
        assert "failed: Could not determine home directory." in compiled.compiled().how
    finally:
        compiled.compiled.cache_clear()


def test_code_in_c_is_code_that_decides_figures(tmp_path: Path) -> None:
    (tmp_path / "kernels.c").write_text("int a;")
    before = identity.source_hash(tmp_path)
    (tmp_path / "kernels.c").write_text("int b;")
    assert identity.source_hash(tmp_path) != before


def test_a_run_made_with_other_kernels_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a compiler was there and failed, as one without headers does, until they are installed."""

    def inputs() -> str:
        made = a_run(tmp_path)
        return made.rows[next(iter(made.rows))].inputs

    working = inputs()
    assert "C compiler" not in capsys.readouterr().err
    compiler, headers = tmp_path / "bin/cc", tmp_path / "headers"
    compiler.parent.mkdir()
    real = shutil.which("cc")
    compiler.write_text(f'#!/bin/sh\n[ -e {headers} ] || exit 1\nPATH=/usr/bin:/bin exec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    failing = inputs()
    assert f"warning: {compiler} failed: " in capsys.readouterr().err
    headers.touch()
    mended = inputs()
    assert "warning: " not in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    none = inputs()
    assert "warning: no C compiler (cc, gcc, clang) was found: the engine" in capsys.readouterr().err
    assert len({working, failing, mended, none}) == 4


def test_shares_sum_to_one_where_scores_are_far_apart() -> None:
    """What is far below the largest is as good as nothing, also by a hundred and more."""
    q = torch.zeros(1, 1, 1, 32, dtype=torch.bfloat16)
    q[..., 0] = 1
    k = torch.zeros(1, 1, 4, 32, dtype=torch.bfloat16)
    k[0, 0, :, 0] = torch.tensor([0.0, -80, -500, -math.inf])
    v = torch.ones(1, 1, 4, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(attention(q, k, v, scale=1.0), torch.ones(1, 1, 1, 32, dtype=torch.bfloat16))
