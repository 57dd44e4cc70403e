"""A plugin's own loss: what it is shown of a network and of its teacher, what it trains, and what its weights are found by."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_training import BUDGET, DATA, SPEC, fresh, tokenizer, tokens, trained  # noqa: F401  # fixtures
from torch import Tensor

from varbench import rows
from varbench.check.small_model import SPEC as LIVELY
from varbench.check.small_model import lively_pipeline
from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import fused_attention
from varbench.experts import PlaceName, PlaceSeen
from varbench.model.tokenizer import Tokenizer
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan
from varbench.policies import MAIN, DepthPolicy, Stage, TrainingSchedule, TrainStep
from varbench.train.curriculum import Curriculum, Teacher
from varbench.train.own_numbers import own_content
from varbench.train.tokens import TokenSet
from varbench.train.training_forecast import stages_of

EVERYWHERE: tuple[PlaceName, ...] = ("attention", "ffn", "head")


class SomeLayers(DepthPolicy):
    """The first alone at the later scales."""

    def layers(self, scale: int, backbone: str) -> tuple[int, ...]:
        return (0,) if scale else (0, 1)


def some_layers(spec: Any) -> Plan:
    return compile_plan(spec, RowPolicies(name="some", depth=Owned(plugin="mine", policy=SomeLayers())))


def full(spec: Any) -> Plan:
    return compile_plan(spec, RowPolicies(name="full"))


def test_what_is_seen_adds_up_to_the_logits() -> None:
    """The stream is what went in and every output behind its gate; each hidden is made from it, and the head's from its end."""
    pipe = lively_pipeline()
    net, labels = pipe.backbones[MAIN], torch.tensor([3, 10])
    codes = torch.randint(256, (2, LIVELY.length), generator=torch.Generator().manual_seed(0))
    features = pipe.tokenizer.teacher_input(codes)
    seen: list[PlaceSeen] = []
    ran = TeacherPass(some_layers(LIVELY), MAIN)
    ran.show(
        net, features, codes, labels, dtype=torch.float32, attend=fused_attention, places=EVERYWHERE, look=seen.append,
        taught={},
    )  # fmt: skip
    assert [(one.place, one.layer, len(one.scales)) for one in seen] == [
        ("attention", 0, 6), ("ffn", 0, 6), ("attention", 1, 1), ("ffn", 1, 1), ("head", LIVELY.depth, 6),
    ]  # fmt: skip
    cond = net.condition(labels)
    x = torch.cat((net.first_tokens(cond), net.later_tokens(features, 1, torch.float32)), dim=1)
    for one in seen[:-1]:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = net.block(one.layer).modulation(
            cond, net.shared_modulation(cond, torch.float32), torch.float32
        )
        attends = one.place == "attention"
        scale, shift, gate = (scale1, shift1, gamma1) if attends else (scale2, shift2, gamma2)
        count = sum(LIVELY.tokens[scale] for scale in one.scales)
        assert torch.equal(one.codes_RL, codes[:, :count])
        expected = F.layer_norm(x[:, :count], (LIVELY.width,), eps=1e-6) * scale + shift
        torch.testing.assert_close(one.hidden_RLC, expected)
        assert set(one.weights) == {name for name, _ in _module(net, one).named_parameters()}
        x = torch.cat((x[:, :count] + one.output_RLC * gate, x[:, count:]), dim=1)
    torch.testing.assert_close(seen[-1].hidden_RLC, x)
    logits = TeacherPass(some_layers(LIVELY), MAIN).logits(net, features, labels, dtype=torch.float32)
    torch.testing.assert_close(seen[-1].output_RLC, logits)


def _module(net: Any, seen: PlaceSeen) -> torch.nn.Module:
    block = net.block(seen.layer)
    return block.attn if seen.place == "attention" else block.ffn


def curriculum(loss: Any, *, plan: Plan, sees: tuple[PlaceName, ...], **step: Any) -> Curriculum:
    asked = TrainStep(loss="own", sees=sees, **step)
    return Curriculum(at=lambda at, uniform: asked, plan_of=lambda point: (plan, MAIN), name="own", own_loss=loss)


def test_its_own_cross_entropy_trains_alike(tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path) -> None:  # noqa: F811
    """So its gradients reach all that runs, though nothing of the trainer's own layers runs."""

    def loss(seen: PlaceSeen) -> Tensor:
        return F.cross_entropy(seen.output_RLC.flatten(0, 1), seen.codes_RL.flatten())

    plan = some_layers(SPEC)
    given = {"budget": replace(BUDGET, mean_decay=0.0)}
    own, _ = trained(
        tokenizer, tokens, tmp_path / "own", curriculum=curriculum(loss, plan=plan, sees=("head",)), **given
    )
    plain = Curriculum(at=lambda at, uniform: TrainStep(), plan_of=lambda point: (plan, MAIN), name="ce")
    theirs, _ = trained(tokenizer, tokens, tmp_path / "ce", curriculum=plain, **given)
    for (name, one), other, before in zip(
        own.named_parameters(), theirs.parameters(), fresh().parameters(), strict=True
    ):
        if not name.endswith("q_bias"):  # whose gradients are next to nothing
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(one, before) == torch.equal(other, before), name


def test_a_student_comes_near_its_teacher(tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path) -> None:  # noqa: F811
    """Of the teacher it sees the same layer at the same tokens, though the teacher runs more of both."""
    teacher = Teacher(transformer=fresh(), plan=full(SPEC))
    with torch.no_grad():
        teacher.transformer.block(0).attn.proj.weight.mul_(3)
    told: list[PlaceSeen] = []

    def loss(seen: PlaceSeen) -> Tensor:
        assert seen.taught is not None and seen.taught.taught is None
        told.append(seen)
        return 1e3 * (seen.output_RLC - seen.taught.output_RLC).square().mean()

    losses: list[float] = []
    model, _ = trained(
        tokenizer,
        tokens,
        tmp_path,
        curriculum=curriculum(loss, plan=some_layers(SPEC), sees=("attention",), scale_weights=(1.0, 1.0, 0.0)),
        budget=replace(BUDGET, steps=30, peak_rate=1e-2, mean_decay=0.0),
        teacher=teacher,
        progress=lambda step, figures: losses.append(figures["loss full"]),
    )
    assert losses[-1] < 0.2 * losses[0]
    assert {(one.layer, one.scales) for one in told} == {(0, (0, 1)), (1, (0,))}
    first = told[0]
    assert first.taught is not None and first.taught.scales == (0, 1)
    assert torch.equal(first.codes_RL, first.taught.codes_RL)
    # What enters the first attention of both is the same, and only there.
    torch.testing.assert_close(first.hidden_RLC, first.taught.hidden_RLC)
    assert not torch.allclose(told[1].hidden_RLC, told[1].taught.hidden_RLC)  # type: ignore[union-attr]  # as in the loss
    assert not any(one.requires_grad for one in (first.taught.output_RLC, *first.weights.values()))
    for name in ("blocks.1.ffn.fc2.weight", "blocks.2.attn.proj.weight", "head.weight"):
        assert torch.equal(model.get_parameter(name), fresh().get_parameter(name)), f"no loss hangs on {name}"


OWN = """
from varbench.policies import Stage, TrainingSchedule, TrainStep


class Own(TrainingSchedule):
    def stages(self):
        return (Stage(name="own", teacher="main"),)

    def at(self, stage, step, total, uniform):
        return TrainStep(loss="own", sees=("attention", "head"))

    def own_loss(self, seen, *, own):
        return {power}
"""


def test_weights_are_found_by_the_text_of_the_loss_s_helpers_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a package or a module beside others, and wherever the import is written."""
    monkeypatch.syspath_prepend(tmp_path)
    row, _ = rows.resolve("full_var@continued", SPEC), importlib.invalidate_caches()
    package = tmp_path / "its_package"
    package.mkdir()
    files = {
        package / "__init__.py": "STORY = 'one'\n",
        package / "schedule.py": OWN.replace("{power}", "loss(seen)") + "from .losses import loss\n",
        package / "losses.py": "def loss(seen):\n    from its_package.deeper import root\n    return root(seen)\n",
        package / "deeper.py": "def root(seen):\n    return seen.output_RLC.mean()\n",
        tmp_path / "its_module.py": OWN.replace("{power}", "loss(seen)") + "from its_neighbour import loss\n",
        tmp_path / "its_neighbour.py": "def loss(seen):\n    return seen.output_RLC.mean()\n",
    }
    for path, text in files.items():
        path.write_text(text)

    def found() -> list[dict[str, object]]:
        made = [importlib.import_module(name).Own() for name in ("its_package.schedule", "its_module")]
        return [own_content(replace(row, schedule=schedule), loss=True) for schedule in made]

    before = found()
    (package / "__init__.py").write_text("STORY = 'two'\n")
    (tmp_path / "of_no_use.py").write_text("")
    assert found() == before
    (package / "deeper.py").write_text(files[package / "deeper.py"].replace("mean", "sum"))
    assert found()[0] != before[0] and found()[1] == before[1]
    (tmp_path / "its_neighbour.py").write_text(files[tmp_path / "its_neighbour.py"].replace("mean", "sum"))
    assert found()[1] != before[1]


def test_weights_are_found_by_the_text_of_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    row, found = rows.resolve("full_var@continued", SPEC), []
    for number in (1, 1, 2):
        name = f"its_own_loss_{len(found)}"
        (tmp_path / f"{name}.py").write_text(OWN.replace("{power}", f"seen.output_RLC.pow({number}).mean()"))
        found.append(own_content(replace(row, schedule=importlib.import_module(name).Own()), loss=True))
    assert found[0] == found[1] != found[2]
    assert own_content(row, loss=False) == {}


def test_what_a_teacher_shows_is_foreseen() -> None:
    """Bytes for each image: of attention what enters and leaves, of the head features and logits."""

    class Own(TrainingSchedule):
        sees: tuple[PlaceName, ...] = ()

        def stages(self) -> tuple[Stage, ...]:
            return (Stage(name="own", teacher=MAIN),)

        def at(self, stage: Stage, step: int, total: int, uniform: Any) -> TrainStep:
            return TrainStep(loss="own", sees=self.sees)

    def activations(*sees: PlaceName) -> int:
        schedule = Own()
        schedule.sees = sees
        row = replace(rows.resolve("full_var@continued", SPEC), schedule=schedule)
        (stage,) = stages_of(row, steps=10, dtype="bfloat16", device="cpu")
        return stage.activations

    length, width, codes = 21, 32, 32
    assert activations("attention") - activations() == length * 3 * width * (4 + 2)
    assert activations("attention", "head") - activations("attention") == length * 4 * (width + codes)
