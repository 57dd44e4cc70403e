"""What only a GPU can show. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import models
import pytest
import torch
from scripted import a_run

from varbench import load_pipeline
from varbench.data.shapes import Shapes
from varbench.engine import expert_ffn
from varbench.engine.loop import Sampling
from varbench.engine.pipeline import Pipeline
from varbench.engine.sampler import _without_tail, draw
from varbench.engine.storage import storage_bytes
from varbench.engine.subjects import EngineSubject
from varbench.engine.transforms import stored
from varbench.measure.calls import Request
from varbench.model import fused
from varbench.model.transformer import Transformer, initialise_
from varbench.plan import cost
from varbench.plan.compiler import compile_plan
from varbench.plan.sizes import backbone_bytes
from varbench.policies import MAIN, TrainStep
from varbench.rows import resolve
from varbench.run.tasks import making
from varbench.train import recipes, step_graphs
from varbench.train.curriculum import Curriculum
from varbench.train.states import Checkpoints
from varbench.train.tokens import tokens_of
from varbench.train.trainer import Budget, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def on_gpu(dtype: str) -> Pipeline:
    cpu = models.pipeline()
    return Pipeline(tokenizer=cpu.tokenizer, backbones=cpu.backbones, device="cuda", dtype=dtype, weights=cpu.weights)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda")


def apart(ours: torch.Tensor, plain: torch.Tensor) -> float:
    return float((ours.double() - plain.double()).abs().max() / plain.double().abs().max())


# --- a GPU against a CPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 0.05), ("float16", 0.01)])
def test_logits_agree_with_the_cpu(dtype: str, bound: float) -> None:
    cpu = models.pipeline()
    tokens = cpu.generate(models.LABELS, seed=1).tokens
    exact = cpu.generate(models.LABELS, tokens=tokens, return_logits=True).logits
    ours = on_gpu(dtype).generate(models.LABELS, tokens=tokens, return_logits=True).logits
    assert exact is not None
    assert ours is not None
    assert (ours.cpu() - exact).abs().mean() / exact.std() < bound


@pytest.mark.parametrize("filters", [{}, {"top_k": 20}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.9}], ids=str)
def test_codes_and_images_agree_with_the_cpu(filters: dict[str, float]) -> None:
    labels = [0, 3, 9, 10, 5, 1, 2, 4] * 8
    cpu, ours = (pipe.generate(labels, seed=2, **filters) for pipe in (models.pipeline(), on_gpu("float32")))  # type: ignore[arg-type]
    same = (cpu.tokens == ours.tokens.cpu()).all(dim=1)
    assert (cpu.tokens == ours.tokens.cpu()).float().mean() > 0.99
    assert (cpu.images[same] - ours.images.cpu()[same]).abs().max() < 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.03), ("float16", 0.005)])
def test_images_of_the_same_codes_are_near(dtype: str, bound: float) -> None:
    cpu = models.pipeline()
    tokens = cpu.generate(models.LABELS, seed=1).tokens
    assert (cpu.decode(tokens) - on_gpu(dtype).decode(tokens).cpu()).abs().mean() < bound


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lossless_accounting_is_lossless(dtype: str) -> None:
    """Keys cast before they are stored, and the last scale left out: the same images as the official way, bit for bit."""
    pipe = on_gpu(dtype)
    lossless = pipe.generate(models.LABELS, seed=1, top_p=0.95, return_logits=True)
    upstream = pipe.generate(
        models.LABELS, seed=1, top_p=0.95, return_logits=True, method="full_var:accounting=upstream"
    )
    assert torch.equal(lossless.tokens, upstream.tokens)
    assert torch.equal(lossless.logits, upstream.logits)  # type: ignore[arg-type]


def test_float8_is_near_the_full_model_and_takes_the_bytes_that_it_declares() -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies float8")
    pipe = on_gpu("bfloat16")
    plain = pipe.generate(models.LABELS, seed=1, return_logits=True)
    ours = pipe.generate(models.LABELS, tokens=plain.tokens, return_logits=True, method="quant@fp8").logits
    assert plain.logits is not None
    assert ours is not None
    assert 0 < (ours - plain.logits).abs().mean() / plain.logits.abs().mean() < 0.2
    held = storage_bytes(stored(pipe.backbones_of("quant@fp8")["main"]))
    assert backbone_bytes(pipe.compile("quant@fp8")[0], "main", "bfloat16") == pytest.approx(held, rel=0.003)


# --- kernels against the plain forms ----------------------------------------------------------------------------------

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs something without our kernels."""

    def run(call):  # type: ignore[no-untyped-def]
        with monkeypatch.context() as patch:
            patch.setattr(fused, "by_kernels", lambda x: False)
            return call()

    return run


@TYPES
@pytest.mark.parametrize("width", [64, 1920])
@torch.inference_mode()
def test_modulated(plain, dtype: torch.dtype, width: int) -> None:  # type: ignore[no-untyped-def]
    x, scale, shift = 3 + 2 * numbers(6, 7, width), numbers(6, 1, width, seed=1), numbers(6, 1, width, seed=2)
    exact = plain(lambda: fused.modulated(x, scale, shift, torch.float32))
    assert apart(fused.modulated(x, scale, shift, dtype), exact) < 2 * ROUNDING[dtype]


@TYPES
@torch.inference_mode()
def test_add_gated(plain, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    x, given, gamma = numbers(6, 7, 1920), numbers(6, 7, 1920, seed=1).to(dtype), numbers(6, 1, 1920, seed=2).to(dtype)
    ours, theirs = x.clone(), x.clone()
    fused.add_gated_(ours, given, gamma)
    plain(lambda: fused.add_gated_(theirs, given, gamma))
    assert apart(ours, theirs) < 1e-6


@TYPES
@pytest.mark.parametrize("heads", [4, 30])
@torch.inference_mode()
def test_unit_queries_and_keys(plain, dtype: torch.dtype, heads: int) -> None:  # type: ignore[no-untyped-def]
    qkv, scale = numbers(6, 7, 3, heads, 64).to(dtype), 4 + numbers(1, heads, 1, 1)
    qkv[0, 0] = 0
    made = fused.unit_queries_and_keys(qkv, scale, dtype, torch.float32)
    exact = plain(lambda: fused.unit_queries_and_keys(qkv, scale, torch.float32, torch.float32))
    for ours, its, rounding in zip(made, exact, (ROUNDING[dtype], 1e-6), strict=True):
        assert apart(ours, its) < rounding


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (900, 0.0), (0, 0.7), (900, 0.96)])
@pytest.mark.parametrize("step", [0.0, 0.0625])
@torch.inference_mode()
def test_drawn(top_k: int, top_p: float, step: float) -> None:
    """Also where logits come in steps, as those in bfloat16 do."""
    logits = 2.5 * numbers(4, 256, 4096)
    logits = (logits / step).round() * step if step else logits
    noise = torch.rand(4, 256, generator=torch.Generator("cuda").manual_seed(3), device="cuda")
    ours = fused.drawn(logits, noise, top_k=top_k, top_p=top_p)
    assert ours is not None
    least = logits.sort(dim=-1).values[..., -top_k:][..., :1]
    left = logits.masked_fill(logits < least, -torch.inf) if top_k else logits
    if top_p:  # of equally likely codes the first ones go
        ordered, places = left.sort(dim=-1, stable=True)
        left = torch.full_like(left, -torch.inf).scatter_(-1, places, _without_tail(ordered, top_p))
    assert (ours == draw(left, noise)).float().mean() > 0.999
    assert left.gather(-1, ours.unsqueeze(-1)).isfinite().float().mean() > 0.999


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (900, 0.96)])
@torch.inference_mode()
def test_the_largest_number_draws_a_code(top_k: int, top_p: float) -> None:
    """Sums in parallel do not always rise, so the last code that can be drawn may lie below the largest of them, also where fewer
    codes than a power of two leave the rest empty, or some have no mass."""
    logits = 2.5 * numbers(64, 256, 4000)
    logits[:, :, 3990:] = -torch.inf
    codes = fused.drawn(logits, torch.full((64, 256), 1 - 2**-24, device="cuda"), top_k=top_k, top_p=top_p)
    assert codes is not None
    assert int(codes.max()) < 3990


# --- graphs -----------------------------------------------------------------------------------------------------------

CAPTURED = (
    "full_var", "variant@d2", "full_var:accounting=upstream", "guidance@from4", "code@training_free/n4", "fastvar@r60", "fastvar@r60:share=true",
    "scalekv@b25", "h2o@b25", "hack@b25", "hack@b25:products=true", "streaming@b25", "snapkv@b25", "quant_cache@b8", "scale_window@w1",
    # Each of one plan with a row above or beside it, and of another choice.
    "h2o@b25:recent=0.1", "streaming@b25:sinks=1", "snapkv@b25:pool=1", "hack@b25:merge=true", "hack@b25:merge=true:weighed=true",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_is_the_same_bit_for_bit(dtype: str) -> None:
    """Depths alternating call by call, labels and seeds changing."""
    pipe = load_pipeline("tiny", device="cuda", dtype=dtype)
    for seed in range(4):
        for method in CAPTURED:
            labels = [(seed + place) % 10 for place in range(6)]
            pipe.graphs = False
            eager = pipe.generate(labels, seed=seed, top_p=0.95, method=method)
            pipe.graphs = True
            assert pipe.captures(method), method
            ours = pipe.generate(labels, seed=seed, top_p=0.95, method=method)
            assert torch.equal(ours.tokens, eager.tokens)
            assert torch.equal(ours.images, eager.images)
            assert ours.trace == eager.trace


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_another_gpu_than_the_current_one_does_the_same() -> None:
    """Kernels, streams and captures are its own, and the current one stays what it was."""
    first, second = (load_pipeline("tiny", device=f"cuda:{number}", dtype="bfloat16") for number in (0, 1))
    for seed in range(2):
        for method in ("full_var", "h2o@b25"):
            one, other = (pipe.generate([1, 2, 3], seed=seed, method=method) for pipe in (first, second))
            assert torch.equal(one.images.cpu(), other.images.cpu())
    assert second.is_captured("full_var", 3, Sampling(cfg=1.5, top_k=0, top_p=0.0))
    assert torch.cuda.current_device() == 0


def test_what_is_captured_shares_its_memory() -> None:
    """Of several rows, a cache that grows by being copied among them, little more is kept than the largest of their calls takes;
    1.85 times as much was seen, for that one, before pieces were given back whole."""
    pipe = load_pipeline("var-d16", device="cuda", dtype="bfloat16", random=True)
    labels, rows = list(range(16)), ("full_var", "variant@d8", "full_var:accounting=upstream", "scalekv@b25")
    most = 0
    for row in rows:
        with pipe.alone(row):
            pipe.generate(labels, method=row)
            torch.cuda.reset_peak_memory_stats()
            pipe.generate(labels, method=row)
            most = max(most, torch.cuda.max_memory_allocated())
    for _ in range(2):
        for row in rows:
            assert pipe.captures(row)
            pipe.generate(labels, method=row)
            assert torch.cuda.memory_reserved() < 2.2 * most, row
    held = torch.cuda.memory_allocated()
    pipe._graphs.forget()
    assert torch.cuda.memory_reserved() < 1.1 * held + 2**27, "what was taken for captures is given back"


def test_what_asks_the_host_within_the_loop_is_not_captured() -> None:
    pipe = load_pipeline("tiny", device="cuda", dtype="bfloat16")
    for method in ("dmoe@untrained/m50", "skipvar@s84"):
        assert not pipe.captures(method), method
        pipe.generate([1, 2, 3], method=method)


@pytest.mark.parametrize("method", ["dmoe@untrained/m50", "actvar@m50r50"])
def test_experts_are_computed_together_without_the_host(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are those that go one by one, call by call, the same ones each time."""
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("there is no such kernel for this card")
    pipe, grouped, calls = load_pipeline("tiny", device="cuda", dtype="bfloat16"), expert_ffn.grouped_experts, []

    def both(x: torch.Tensor, chosen: torch.Tensor, experts: expert_ffn.Experts) -> torch.Tensor:
        plain = expert_ffn.chosen_experts(x, chosen, replace(experts, seen=expert_ffn.NobodyWatches()))
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours = grouped(x, chosen, experts)
            again = grouped(x, chosen, replace(experts, seen=expert_ffn.NobodyWatches()))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        calls.append(apart(ours, plain))
        assert torch.equal(ours, again)
        return plain

    monkeypatch.setattr(expert_ffn, "grouped_experts", both)
    trace = pipe.generate(list(range(7)), seed=3, method=method).trace
    assert calls and max(calls) < 2**-6
    monkeypatch.setattr(expert_ffn, "_are_grouped", lambda x, experts: False)
    assert pipe.generate(list(range(7)), seed=3, method=method).trace.steps[-1].calls == trace.steps[-1].calls


def test_graphs_can_be_left_out_and_the_record_says_which(tmp_path: Path) -> None:
    for graphs in (True, False):
        run = a_run(tmp_path, plugins="full_var", device="cuda", graphs=graphs)
        subject, _ = making.load(run.job(rows=("full_var",)))
        assert isinstance(subject, EngineSubject) and subject.pipe.graphs is graphs
        seen = making.answer(subject, Request(row="full_var", labels=(1, 2), seed=0, look="memory"))
        assert ("CUDA graphs" in str(seen.arithmetic)) is graphs


def test_an_observer_is_called_as_without_graphs() -> None:
    pipe, seen = on_gpu("bfloat16"), []
    for _ in range(4):
        moments: list[tuple[str, int]] = []
        pipe.generate(models.LABELS, observer=lambda moment, step, into=moments: into.append((moment, step)))
        seen.append(moments)
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len(seen[0]) == 3 * len(models.SPEC.sides)


def test_models_that_move_are_captured_anew() -> None:
    pipe = load_pipeline("tiny", device="cuda", dtype="bfloat16")
    exact = pipe.generate([1, 2, 3], method="code@training_free/n4").images
    for _ in range(3):
        pipe.generate([1, 2, 3], method="code@training_free/n4")
    with pipe.alone("full_var"):
        torch.empty(2**28, device="cuda").fill_(1)
    for _ in range(3):
        assert torch.equal(pipe.generate([1, 2, 3], method="code@training_free/n4").images, exact)


# --- training ---------------------------------------------------------------------------------------------------------


def trained_on_gpu(folder: Path, *, steps: int, stop: int | None = None) -> torch.Tensor:
    """Full model and a subnet by turns, in batches of some dropped classes."""

    def progress(step: int, figures: dict[str, float]) -> None:
        if step == stop:
            raise KeyboardInterrupt

    row = resolve("variant@d2", models.SPEC)
    plans = {point: recipes.full_plan(models.SPEC) for point in (None,)} | {
        "d2": compile_plan(models.SPEC, row.policies)
    }
    tokenizer = models.tokenizer(models.SPEC).cuda()
    data = Shapes(side=16)
    tokens = tokens_of(data, tokenizer, model=models.SPEC, indices=data.training[:64])
    model = initialise_(Transformer(models.SPEC), torch.Generator().manual_seed(0)).cuda()
    train(
        model,
        tokenizer=tokenizer,
        tokens=tokens,
        curriculum=Curriculum(
            at=lambda step, uniform: TrainStep(point="d2" if step % 2 else None),
            plan_of=lambda point: (plans[point], MAIN),
            name="test",
        ),
        budget=Budget(steps=steps, peak_rate=1e-3, batch=8, images=64),
        checkpoints=Checkpoints(folder / "state", every_seconds=0.0, clock=lambda: 0.0),
        progress=progress,
    )
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def test_captured_training_is_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (replays.append(1), replay(self))[1])
    captured = trained_on_gpu(tmp_path / "captured", steps=14)
    assert len(replays) == 10  # of seven steps of each kind the first two warm up
    with pytest.raises(KeyboardInterrupt):
        trained_on_gpu(tmp_path / "resumed", steps=14, stop=9)
    resumed = trained_on_gpu(tmp_path / "resumed", steps=14)
    monkeypatch.setattr(step_graphs, "LARGEST", 0)
    replays.clear()
    plain = trained_on_gpu(tmp_path / "plain", steps=14)
    assert not replays
    first = trained_on_gpu(tmp_path / "first", steps=1)
    for other in (plain, resumed):
        assert float((captured - other).norm() / (captured - first).norm()) < 1e-3


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full_var", "variant@d2", "full_var:accounting=upstream"])
def test_the_allocator_sees_the_planned_state(method: str) -> None:
    """What is asked of the allocator grows and falls by the plan's bytes."""
    pipe = load_pipeline("var-d16", device="cuda", dtype="bfloat16", random=True)
    held: list[int] = []

    def look(when: str, step: int) -> None:
        if when == "end":
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_stats()["requested_bytes.all.current"])

    pipe.generate([0] * 8, method=method)  # libraries take their workspaces
    pipe.graphs = False
    out = pipe.generate([0] * 8, method=method, observer=look)
    planned = [step.state_after for step in cost.work(out.plan, batch=8, dtype="bfloat16").steps]
    assert tuple(planned) == out.trace.state_after
    for before, after, was, now in zip(held, held[1:], planned, planned[1:], strict=False):
        assert abs((after - before) - (now - was)) < 2**18
