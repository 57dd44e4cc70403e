"""The trainer through its public face: what is random, what a step computes, what a kill leaves, what is refused."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from varbench.__main__ import main
from varbench.base import whole_files
from varbench.commands import train as train_command
from varbench.data.folder import ImageFolder
from varbench.data.shapes import Shapes
from varbench.errors import CheckpointError, UserError
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer, initialise_
from varbench.policies import TrainStep
from varbench.spec import ModelSpec, TokenizerSpec
from varbench.train.budgets import recipe_budget
from varbench.train.curriculum import Curriculum, Teacher
from varbench.train.export import export
from varbench.train.optimiser import adamw, rate_at
from varbench.train.order import batch_rows, class_drops, uniforms
from varbench.train.recipes import full_curriculum
from varbench.train.states import Checkpoints, ctrl_c_waits, load_state, save_state
from varbench.train.tokens import TokenSet, tokens_of
from varbench.train.train_tokenizer import TokenizerBudget, train_tokenizer
from varbench.train.trainer import Budget, train

SPEC = ModelSpec(
    name="small",
    sides=(1, 2, 4),
    depth=3,
    width=32,
    heads=2,
    classes=10,
    tokenizer=TokenizerSpec(channels=32, multipliers=(1, 1, 1), blocks=1, code_dim=8, vocabulary=32, phis=4),
)
DATA = Shapes(side=16)
BUDGET = Budget(steps=6, peak_rate=1e-3, batch=8, images=32, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.for_model(SPEC).eval().requires_grad_(False)


@pytest.fixture
def tokens(tokenizer: Tokenizer) -> TokenSet:
    return tokens_of(DATA, tokenizer, model=SPEC, indices=DATA.training[:32])


def fresh() -> Transformer:
    return initialise_(Transformer(SPEC), torch.Generator().manual_seed(0))


def each_step(path: Path) -> Checkpoints:
    """Time stands still, and no time has to pass between two checkpoints."""
    return Checkpoints(path, every_seconds=0.0, clock=lambda: 0.0)


def trained(tokenizer: Tokenizer, tokens: TokenSet, folder: Path, **changes: object) -> tuple[Transformer, dict]:
    model = fresh()
    settings = {
        "curriculum": full_curriculum(SPEC, name="test"),
        "budget": BUDGET,
        "checkpoints": each_step(folder / "state"),
        "progress": lambda step, figures: None,
        **changes,
    }
    return model, train(model, tokenizer=tokenizer, tokens=tokens, **settings)  # type: ignore[arg-type]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_every_image_is_seen_once_before_any_twice_and_each_round_has_a_new_order() -> None:
    seen = np.concatenate([batch_rows(seed=1, step=step, batch=6, count=15) for step in range(5)])
    first, second = seen[:15], seen[15:]
    assert sorted(first) == sorted(second) == list(range(15))
    assert list(first) != list(second)


def test_what_is_random_depends_on_seed_and_step_alone() -> None:
    again = [class_drops(seed=3, step=9, batch=64, probability=0.5) for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert (again[0] != class_drops(seed=3, step=10, batch=64, probability=0.5)).any()
    assert (again[0] != class_drops(seed=4, step=9, batch=64, probability=0.5)).any()
    # A later random number of a step does not depend on whether an earlier one was asked for.
    draw, same = uniforms(seed=3, step=9), uniforms(seed=3, step=9)
    assert [draw(0), draw(1), draw(2)] == [same(0), same(1), same(2)] and draw(2) == same(2)
    assert abs(np.mean([class_drops(seed=0, step=s, batch=100, probability=0.1) for s in range(50)]) - 0.1) < 0.01


def test_rate_warms_up_then_falls_to_its_floor() -> None:
    rates = [rate_at(step, steps=100, peak=1.0, warm_up=10, floor=0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0 and rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_vectors_do_not_decay_and_a_step_is_one_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = adamw(fresh(), weight_decay=0.05)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert len(plain["params"]) == sum(max(p.shape, default=1) == p.numel() for p in fresh().parameters())
    fused, groups = torch._fused_adamw_, list[int]()

    def counted(parameters: list[torch.Tensor], *given: Any, **named: Any) -> None:
        groups.append(len(parameters))
        fused(parameters, *given, **named)

    monkeypatch.setattr(torch, "_fused_adamw_", counted)
    for parameter in (*decayed["params"], *plain["params"]):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert groups == [len(decayed["params"]), len(plain["params"])]


def test_tokens_are_those_of_the_tokenizer_and_kept_by_content(tokenizer: Tokenizer, tokens: TokenSet) -> None:
    images = torch.from_numpy(DATA.images(range(32))).float() / 127.5 - 1
    assert (torch.from_numpy(tokens.tokens_NL.astype(np.int64)) == tokenizer.encode(images)).all()
    assert list(tokens.labels_N) == list(DATA.labels(range(32)))
    assert isinstance(tokens.tokens_NL, np.memmap)
    assert tokens_of(DATA, tokenizer, model=SPEC, indices=DATA.training[:32]).key == tokens.key
    torch.manual_seed(1)
    assert tokens_of(DATA, Tokenizer.for_model(SPEC), model=SPEC, indices=DATA.training[:32]).key != tokens.key
    assert tokens_of(Shapes(side=16, seed=1), tokenizer, model=SPEC, indices=DATA.training[:32]).key != tokens.key


def test_loss_falls_and_the_mean_weights_are_left(tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path) -> None:
    losses: list[float] = []
    model, record = trained(
        tokenizer,
        tokens,
        tmp_path,
        budget=replace(BUDGET, steps=40, peak_rate=3e-3, mean_decay=0.5),
        progress=lambda step, figures: losses.append(figures["loss full"]),
    )
    assert losses[0] == pytest.approx(math.log(32), abs=0.05)
    assert np.mean(losses[-5:]) < losses[0] - 0.3
    assert record["steps_by_point"] == {"full": 40}
    last = load_state(tmp_path / "state", identity={})
    assert last is not None and not torch.equal(last["module"]["head.weight"], model.head.weight)
    assert not any(p.requires_grad for p in model.parameters())


def test_first_loss_is_cross_entropy_of_the_dropped_labels(
    tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path
) -> None:
    """One step of the trainer against the same thing written out, with the scales weighted."""
    heavy = TrainStep(scale_weights=(1.0, 3.0, 0.0))
    plan, backbone = full_curriculum(SPEC, name="x").plan_of(None)
    curriculum = Curriculum(at=lambda step, uniform: heavy, plan_of=lambda point: (plan, backbone), name="weighted")
    seen: list[float] = []
    trained(
        tokenizer,
        tokens,
        tmp_path,
        curriculum=curriculum,
        budget=replace(BUDGET, steps=1, class_drop=1.0),
        progress=lambda step, figures: seen.append(figures["loss full"]),
    )
    from varbench.engine.teacher import TeacherPass

    rows = batch_rows(seed=0, step=0, batch=8, count=32)
    codes = torch.from_numpy(tokens.tokens_NL[rows].astype(np.int64))
    logits = TeacherPass(plan, backbone).logits(
        fresh(), tokenizer.teacher_input(codes), torch.full((8,), 10), dtype=torch.float32
    )
    each = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
    expected = (each[:, :1].sum() + 3 * each[:, 1:5].sum()) / (8 * (1 + 3 * 4))
    assert seen == pytest.approx([float(expected.detach())], rel=1e-5)


def test_kl_to_itself_is_nothing(tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path) -> None:
    plan, backbone = full_curriculum(SPEC, name="x").plan_of(None)
    seen: list[float] = []
    trained(
        tokenizer,
        tokens,
        tmp_path,
        curriculum=Curriculum(
            at=lambda step, uniform: TrainStep(loss="kl"), plan_of=lambda point: (plan, backbone), name="kl"
        ),
        budget=replace(BUDGET, steps=1),
        teacher=Teacher(transformer=fresh(), plan=plan),
        progress=lambda step, figures: seen.append(figures["loss full"]),
    )
    assert seen == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("heads_differ", [False, True])
def test_a_trained_layer_is_its_modules(l2: bool, heads_differ: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values and gradients as autograd finds for the modules' own arithmetic, also where heads see differently."""
    from varbench.engine import teacher
    from varbench.engine.trained_layer import explicit_attention, fused_attention, trained_layer

    torch.manual_seed(0)
    block = initialise_(Transformer(replace(SPEC, l2_attention=l2)), torch.Generator().manual_seed(0)).block(0)
    mask = torch.ones(21, 21, dtype=torch.bool).tril()
    if heads_differ:
        mask = torch.stack([mask, torch.eye(21, dtype=torch.bool)])

    def gradients(layer, attend, dtype):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(4, 21, SPEC.width, generator=generator).requires_grad_()
        modulation = [torch.randn(4, 1, SPEC.width, generator=generator).requires_grad_() for _ in range(6)]
        out = layer(x, block, tuple(modulation), mask, dtype, attend)
        wanted = [x, *modulation, *(p for name, p in block.named_parameters() if not name.startswith("ada"))]
        return [out, *torch.autograd.grad((out * torch.randn(out.shape, generator=generator)).sum(), wanted)]

    plain = gradients(partial(teacher._layer_of_modules, ffn=None), fused_attention, torch.float32)
    for attend in (explicit_attention, fused_attention):
        for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
            for one, other in zip(gradients(trained_layer, attend, dtype), plain, strict=True):
                assert float((one - other).detach().norm() / other.norm()) < near, one.shape


def test_a_recipe_has_sixty_thousand_images_and_a_short_one_takes_those_it_sees() -> None:
    assert recipe_budget(60).images_seen == 60 * 32
    assert recipe_budget(8_000).images_seen == 60_000
    seen = np.concatenate([batch_rows(seed=0, step=step, batch=32, count=60 * 32) for step in range(60)])
    assert len(np.unique(seen)) == 60 * 32, "none of them twice"


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
import test_training as t
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
tokenizer = t.Tokenizer.for_model(t.SPEC).eval().requires_grad_(False)
tokens = t.tokens_of(t.DATA, tokenizer, model=t.SPEC, indices=t.DATA.training[:32])
def progress(step, figures):
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
t.trained(tokenizer, tokens, Path({folder!r}), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4])
def test_killed_training_goes_on_to_the_same_weights(
    tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path, step: int
) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"), step=step)
    child = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    left = load_state(tmp_path / "killed" / "state", identity={})
    assert (left or {"step": 0})["step"] == step - 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, record = trained(tokenizer, tokens, tmp_path / "killed")
        whole, _ = trained(tokenizer, tokens, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(weights(resumed), weights(whole))
    assert record["steps_by_point"] == {"full": 6}


def test_checkpoints_come_by_time_and_never_take_much_of_it(tmp_path: Path) -> None:
    now = 0.0

    def slow_disk() -> None:
        nonlocal now
        now += 3.0

    saves = Checkpoints(tmp_path / "state", every_seconds=10.0, clock=lambda: now)
    due = []
    for now in (5.0, 9.0, 10.0):  # noqa: B007
        due.append(saves.due())
    assert due == [False, False, True]
    saves.written(lambda: save_state(saves.path, {"identity": {}, "step": 1}), also=slow_disk)
    assert now == 13.0
    due = []
    for now in (24.0, 72.0, 73.0):  # noqa: B007
        due.append(saves.due())
    assert due == [False, False, True], "a save of 3 s comes once in 60 s"


def test_ctrl_c_saves_the_step_it_comes_in(tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path) -> None:
    """Nothing is due for an hour; the key is pressed in the third of six steps."""

    def press(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    rare = Checkpoints(tmp_path / "state", every_seconds=3600.0)
    with pytest.raises(KeyboardInterrupt):
        trained(tokenizer, tokens, tmp_path, checkpoints=rare, progress=press)
    saved = load_state(tmp_path / "state", identity={})
    assert saved is not None and saved["step"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, _ = trained(tokenizer, tokens, tmp_path, checkpoints=rare)
    whole, _ = trained(tokenizer, tokens, tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(whole))


def test_a_training_that_is_terminated_ends_as_by_ctrl_c_with_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As batch systems and containers end a program."""

    def terminated(*given: Any) -> int:
        with ctrl_c_waits() as noted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert noted(), "the step is finished and saved"
            raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "_transformer", terminated)
    monkeypatch.setattr(sys, "argv", ["varbench", "train", "base", "--out", "with a space"])
    assert main(sys.argv[1:]) == 130
    assert "go on from here with: varbench train base --out 'with a space'\n" in capsys.readouterr().err


def test_ctrl_c_twice_is_not_kept_waiting() -> None:
    with ctrl_c_waits() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_training_that_diverges_ends_and_leaves_nothing(
    tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def break_it(step: int, figures: dict[str, float]) -> None:
        if step == 2 and where == "loss":
            monkeypatch.setattr(F, "cross_entropy", lambda *args, **kwargs: cross_entropy(*args, **kwargs) * math.nan)
        elif step == 2:
            monkeypatch.setattr(F, "cross_entropy", lambda *args, **kwargs: infinite_slope(*args, **kwargs))

    cross_entropy = F.cross_entropy

    def infinite_slope(*args: object, **kwargs: object) -> torch.Tensor:
        """A finite loss whose gradient is not: what follows from it would be NaN weights after the last step."""
        loss = cross_entropy(*args, **kwargs)  # type: ignore[arg-type]
        return loss + (loss - loss.detach()).abs().sqrt()

    with pytest.raises(UserError, match=rf"test: the {where} is (nan|inf) at step 3 of 3.*--rate \(now 0.001\)"):
        trained(tokenizer, tokens, tmp_path, budget=replace(BUDGET, steps=3), progress=break_it)
    assert not (tmp_path / "state").exists()


def test_weights_that_diverged_are_not_written(tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        model.head.weight[3, 4] = math.inf
    with pytest.raises(UserError, match=r"diverged: 1 of \d+ tensors hold NaN or infinite values \(head.weight\)"):
        export(model, tmp_path / "out.safetensors", spec=SPEC, record={})
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_training_is_refused(tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path) -> None:
    trained(tokenizer, tokens, tmp_path)
    with pytest.raises(CheckpointError, match=r"belongs to a training with seed 0, and this one has seed 1\. Use"):
        trained(tokenizer, tokens, tmp_path, budget=replace(BUDGET, seed=1))
    # What the optimiser keeps goes by the order of the parameters, which another version of a method may have changed.
    state = torch.load(tmp_path / "state")
    torch.save({**state, "identity": {**state["identity"], "parameters": "others"}}, tmp_path / "state")
    with pytest.raises(CheckpointError, match="a training with parameters 'others'"):
        trained(tokenizer, tokens, tmp_path)
    (tmp_path / "state").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trained(tokenizer, tokens, tmp_path)


def test_a_state_is_mapped_and_what_becomes_of_it_never_reaches_the_file(tmp_path: Path) -> None:
    """Else each of eight processes would hold a copy of it beside its own weights."""
    path, numbers = tmp_path / "state", torch.arange(5000.0)
    save_state(path, {"identity": {}, "numbers": numbers})
    state = load_state(path, identity={})
    assert state is not None and str(path) in Path("/proc/self/maps").read_text()
    state["numbers"] += 1
    again = load_state(path, identity={})
    assert again is not None and torch.equal(again["numbers"], numbers)
    save_state(path, {"identity": {}, "numbers": -numbers})
    assert torch.equal(state["numbers"], numbers + 1), "what was read before is another file"


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    save_state(path, {"identity": {}, "step": 1})

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_files.os, "fsync", no_space)
    with pytest.raises(UserError, match="disk is full"):
        save_state(path, {"identity": {}, "step": 2})
    assert load_state(path, identity={}) == {"identity": {}, "step": 1}
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["state"]


def test_too_little_space_is_said_before_anything_is_trained(
    tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = whole_files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(whole_files.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs .* MiB"):
        trained(tokenizer, tokens, tmp_path)


@pytest.mark.slow
def test_tokenizer_learns_and_resumes(tmp_path: Path) -> None:
    budget = TokenizerBudget(steps=12, batch=8, images=64, warm_up=2, reseed_every=4, peak_rate=2e-3)
    losses: list[float] = []

    def stop(step: int, figures: dict[str, float]) -> None:
        losses.append(figures["loss"])
        if step == 6 and len(losses) == 6:
            raise KeyboardInterrupt

    def run(folder: str, progress: object = lambda step, figures: None) -> Tokenizer:
        return train_tokenizer(
            SPEC,
            data=DATA,
            budget=budget,
            checkpoints=each_step(tmp_path / folder / "state"),
            progress=progress,
        )[0]  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    resumed, whole = run("stopped", stop), run("whole")
    assert torch.equal(weights(resumed), weights(whole))
    assert losses[-1] < losses[0] - 0.1


def test_tokenizer_refuses_data_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16x16 and the data has 32x32"):
        train_tokenizer(
            SPEC,
            data=Shapes(side=32),
            budget=TokenizerBudget(),
            checkpoints=Checkpoints(tmp_path / "state"),
            progress=lambda step, figures: None,
        )


def test_a_tokenizer_sees_all_of_a_users_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as its steps go: what they never come to is not read."""
    large = ImageFolder(tmp_path, 32, ("one",), (), (), range(100_000), range(0), range(0))
    counts: list[int] = []

    def images(data: ImageFolder, *, count: int) -> None:
        counts.append(len(data.training[:count]))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "_data", lambda args, side: large)
    monkeypatch.setattr("varbench.train.train_tokenizer.training_images", images)
    for steps in ("4000", "2000"):
        out = str(tmp_path / "tokenizer")
        assert main(["train", "tokenizer", "--steps", steps, "--batch", "32", "--out", out]) == 130
    assert counts == [100_000, 64_000]
