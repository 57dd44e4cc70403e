"""Recipes: what a row's schedule trains, on which plans, and what is found again in the cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from test_training import BUDGET, DATA, SPEC, fresh, weights

from varbench import rows
from varbench.__main__ import main
from varbench.base.display import Display
from varbench.engine.loading import load_pipeline
from varbench.errors import UserError
from varbench.model.checkpoints import load_transformer
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer, initialise_
from varbench.plan import presets
from varbench.plan.owned import Owned, RowPolicies
from varbench.policies import DepthPolicy, Stage, StepPolicy, StepSpec, TrainingSchedule, TrainStep
from varbench.train import evaluation, recipes, tokens
from varbench.train.export import export
from varbench.train.recipes import RecipeWeights, recipe_weights
from varbench.train.states import save_state
from varbench.train.training_forecast import stages_of

STEPS = replace(BUDGET, steps=8)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """A tokenizer, a model and its narrow companion, as files."""
    torch.manual_seed(0)
    narrow = SPEC.narrower()
    modules = {
        "vae": Tokenizer.for_model(SPEC),
        "main": fresh(),
        "refiner": initialise_(Transformer(narrow), torch.Generator().manual_seed(1)),
    }
    for name, module in modules.items():
        export(module, tmp_path / f"{name}.safetensors", spec=narrow if name == "refiner" else SPEC, record={})
    return {name: tmp_path / f"{name}.safetensors" for name in modules}


def trained(
    row: rows.Row, given: dict[str, Path], steps: int = 8, display: Display | None = None, **changes: Any
) -> RecipeWeights:
    pretrained = {name: path for name, path in given.items() if name != "vae"}
    budget = replace(STEPS, steps=steps, **changes)
    return recipe_weights(row, vae=given["vae"], pretrained=pretrained, data=DATA, budget=budget, display=display)


def of(path: Path) -> torch.Tensor:
    return weights(load_transformer(path, SPEC.tokenizer))


class FirstLayer(DepthPolicy):
    def layers(self, scale: int, backbone: str) -> tuple[int, ...]:
        return (0,) if scale else (0, 1)


class Fixed(TrainingSchedule):
    """Always the same step."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        return self._step


def test_layers_that_the_plan_leaves_out_are_not_trained(
    given: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(
        rows.resolve("full_var@continued", SPEC),
        policies=RowPolicies(name="short", depth=Owned(plugin="mine", policy=FirstLayer())),
        schedule=Fixed(TrainStep(point="short")),
    )
    monkeypatch.setattr(rows, "at_point", lambda asked, point: asked)
    done = trained(row, given)
    before = load_transformer(given["main"], SPEC.tokenizer)
    after = load_transformer(done.files["main"], SPEC.tokenizer)
    changed = [not torch.equal(weights(a), weights(b)) for a, b in zip(before.blocks, after.blocks, strict=True)]
    assert changed == [True, True, False]
    assert done.record["stages"]["train"]["steps_by_point"] == {"short": 8}
    assert done.files["refiner"] == given["refiner"]


class InParts(Fixed):
    """FFNs first, then the second layer's attention."""

    def __init__(self, *patterns: str) -> None:
        super().__init__(TrainStep())
        self._patterns = patterns

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            Stage(name=f"stage{place}", share=1 / len(self._patterns), parts=(pattern,))
            for place, pattern in enumerate(self._patterns)
        )


def test_stages_freeze_what_no_pattern_of_theirs_fits(given: dict[str, Path]) -> None:
    def changed(*patterns: str) -> set[str]:
        row = replace(rows.resolve("full_var@continued", SPEC), schedule=InParts(*patterns))
        before, after = (
            load_transformer(path, SPEC.tokenizer).state_dict()
            for path in (given["main"], trained(row, given).files["main"])
        )
        return {name for name in before if not torch.equal(before[name], after[name])}

    ffns = changed("blocks.*.ffn.*")
    assert {name.split(".")[2] for name in ffns} == {"ffn"} and {name.split(".")[1] for name in ffns} == {"0", "1", "2"}
    both = changed("blocks.*.ffn.*", "blocks.1.attn.*")
    assert {name.split(".")[2] for name in both - ffns} == {"attn"} and {
        name.split(".")[1] for name in both - ffns
    } == {"1"}
    with pytest.raises(UserError, match=r"stage0: no weight has a name like 'blocks.9.\*'; there are blocks.0"):
        changed("blocks.9.*")


class DraftsAndEncodesAgain(StepPolicy, DepthPolicy):
    """One layer drafts the first two scales, and all encode them again with the third."""

    def steps(self) -> list[StepSpec]:
        return [StepSpec(scales=(0,)), StepSpec(scales=(1,)), StepSpec(scales=(0, 1, 2))]

    def layers(self, scale: int, backbone: str) -> range:
        return range(3 if scale == 2 else 1)


@pytest.mark.parametrize("weights_of_scales", [None, (1.0, 1.0, 0.0)])
def test_a_draft_that_is_encoded_again_is_trained_as_both(
    given: dict[str, Path], monkeypatch: pytest.MonkeyPatch, weights_of_scales: tuple[float, ...] | None
) -> None:
    """Its first scales' loss is the draft's, by one layer; only where the last scale counts do the others learn of them."""
    owned = Owned[Any](plugin="mine", policy=DraftsAndEncodesAgain())
    row = replace(
        rows.resolve("full_var@continued", SPEC),
        policies=RowPolicies(name="draft", depth=owned, steps=owned),
        schedule=Fixed(TrainStep(point="draft", scale_weights=weights_of_scales)),
    )
    monkeypatch.setattr(rows, "at_point", lambda asked, point: asked)
    done = trained(row, given, steps=40, peak_rate=3e-3)
    losses = [loss for _, loss in done.record["stages"]["train"]["losses"]["draft"]]
    assert losses[-1] < losses[0] - 0.2
    before = load_transformer(given["main"], SPEC.tokenizer)
    after = load_transformer(done.files["main"], SPEC.tokenizer)
    changed = [not torch.equal(weights(a), weights(b)) for a, b in zip(before.blocks, after.blocks, strict=True)]
    assert changed == [True, *[weights_of_scales is None] * 2]


def test_points_of_a_recipe_share_weights_and_a_second_time_trains_nothing(given: dict[str, Path]) -> None:
    full, other = rows.expand("full_var@continued,fixed_ratio@p10/full", SPEC)
    first = trained(full, given)
    assert first.origin == "here" and not torch.equal(of(first.files["main"]), of(given["main"]))
    again = trained(full, given)
    assert again.origin == "cache" and again.files == first.files and again.record == first.record
    # Another schedule, or another number of steps, is another training.
    assert trained(other, given).files["main"] != first.files["main"]
    assert trained(full, given, steps=9).files["main"] != first.files["main"]
    shallow = rows.resolve("fixed_ratio@p10/d1", SPEC)
    assert trained(shallow, given).origin == "cache"


def test_pretrained_recipes_train_nothing(given: dict[str, Path]) -> None:
    done = trained(rows.resolve("full_var", SPEC), given)
    assert done.record is None and done.files["main"] == given["main"]


def test_pair_trains_both_models_with_the_large_one_as_teacher(given: dict[str, Path]) -> None:
    done = trained(rows.resolve("code@trained/n1", SPEC), given)
    stages = done.record["stages"]
    assert {name: stage["steps"] for name, stage in stages.items()} == {"drafter": 2, "refiner": 6}
    for name in ("main", "refiner"):
        assert not torch.equal(of(done.files[name]), of(given[name]))
    assert load_transformer(done.files["refiner"], SPEC.tokenizer).spec.width == SPEC.width // 2


def test_missing_second_model_is_named(given: dict[str, Path]) -> None:
    del given["refiner"]
    with pytest.raises(UserError, match="'refiner'"):
        trained(rows.resolve("code@trained/n1", SPEC), given)


def test_too_few_steps_for_the_phases_are_refused(given: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="too few"):
        trained(rows.expand("variant", SPEC)[0], given, steps=2)


def test_a_step_costs_what_its_plan_runs() -> None:
    """Multiplications of the pass, counted from outside, against those of the tokens that each layer runs."""
    from torch.utils.flop_counter import FlopCounterMode

    from varbench.engine.teacher import TeacherPass
    from varbench.engine.trained_layer import explicit_attention
    from varbench.plan.compiler import compile_plan

    short = RowPolicies(name="short", depth=Owned(plugin="mine", policy=FirstLayer()))
    batch, width = 2, SPEC.width
    counted = []
    for row in (short, RowPolicies(name="full")):
        run = TeacherPass(compile_plan(SPEC, row), "main")
        with FlopCounterMode(display=False) as counter:
            features = torch.zeros(batch, SPEC.length - 1, SPEC.tokenizer.code_dim)
            labels = torch.zeros(batch, dtype=torch.long)
            run.logits(fresh(), features, labels, dtype=torch.float32, attend=explicit_attention)
        counted.append(counter.get_total_flops())

    def layer(tokens: int) -> int:
        condition = 2 * 6 * width**2
        return batch * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width + condition)

    everything = SPEC.length
    assert counted[1] - counted[0] == 3 * layer(everything) - layer(everything) - layer(SPEC.tokens[0])


def test_a_recipe_is_looked_at_while_it_trains(given: dict[str, Path]) -> None:
    row = rows.expand("fixed_ratio@p10/d1", SPEC)[0]
    record = trained(row, given).record["stages"]["train"]
    looks = {(look["step"], look["point"]): look["value"] for look in record["evaluations"]}
    assert set(looks) == {(step, point) for step in (0, 2, 4, 6, 8) for point in ("full", "d2")}
    pipe = load_pipeline(vae=given["vae"], var=given["main"], dtype="float32")
    held_out = DATA.validation[: evaluation.IMAGES]
    tokens = pipe.encode(torch.from_numpy(DATA.images(held_out)).float() / 127.5 - 1)
    logits = pipe.logits(tokens, DATA.labels(held_out).tolist())
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens)
    assert looks[0, "full"] == pytest.approx(float(loss), rel=1e-5)
    assert looks[8, "d2"] != looks[0, "d2"]
    steps = sorted(step for curve in record["losses"].values() for step, _ in curve)
    assert steps == list(range(1, 9))


WAITING = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_training_recipes as t
given = {{name: Path({folder!r}) / f"{{name}}.safetensors" for name in ("vae", "main", "refiner")}}
done = t.trained(t.rows.resolve("full_var@continued", t.SPEC), given, display=t.Display({{}}))
print(done.origin, flush=True)
"""


def test_two_that_want_one_recipe_train_it_once(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process comes while the first is at it, which goes on once the second has said that it waits."""
    script = WAITING.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    others: list[subprocess.Popen[str]] = []
    said = ""

    def tokens_of(*args: Any, **kwargs: Any) -> Any:
        nonlocal said
        if not others:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            others.append(
                subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=PIPE, stderr=PIPE, text=True)
            )
            said = others[0].stderr.readline()  # type: ignore[union-attr]
        return tokens.tokens_of(*args, **kwargs)

    monkeypatch.setattr(recipes, "tokens_of", tokens_of)
    first = trained(rows.resolve("full_var@continued", SPEC), given)
    answer, errors = others[0].communicate(timeout=120)
    assert said == "full_var@continued is being trained by another process; waiting for it\n", errors
    assert first.origin == "here" and answer == "cache\n"


def test_a_recipe_that_is_interrupted_goes_on_from_that_step(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight steps take no ten seconds, so only the interruption itself can have saved the fifth."""
    steps: list[int] = []

    def pressing(display: Display, kind: str, title: str, **kwargs: Any) -> Any:
        @contextmanager
        def shown() -> Iterator[Any]:
            def progress(step: int, figures: dict[str, float]) -> None:
                if title == "full_var@continued":
                    steps.append(step)
                    if step == 5 and len(steps) == 5:
                        os.kill(os.getpid(), signal.SIGINT)

            yield progress

        return shown()

    monkeypatch.setattr(recipes, "followed", pressing)
    row = rows.resolve("full_var@continued", SPEC)
    with pytest.raises(KeyboardInterrupt):
        trained(row, given)
    assert trained(row, given).origin == "here"
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "another training" not in capsys.readouterr().err


@pytest.mark.parametrize("at", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_own_numbers_a_loss_of_its_own_and_a_teacher_are_there_again_after_an_interruption(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In either of two stages, of which the first trains a method's numbers alone and the second all by the frozen model."""
    row = rows.resolve("actvar@distilled/m50r50:experts=8", SPEC)
    assert row.schedule is not None
    assert [(stage.trains, stage.teacher) for stage in row.schedule.stages()] == [("own", None), ("both", "main")]
    whole = load_transformer(trained(row, given).files["main"], SPEC.tokenizer)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    taken: list[int] = []

    def pressing(display: Display, kind: str, title: str, **kwargs: Any) -> Any:
        @contextmanager
        def shown() -> Iterator[Any]:
            def progress(step: int, figures: dict[str, float]) -> None:
                taken.append(step)
                if len(taken) == at:
                    os.kill(os.getpid(), signal.SIGINT)

            yield progress

        return shown()

    monkeypatch.setattr(recipes, "followed", pressing)
    with pytest.raises(KeyboardInterrupt):
        trained(row, given)
    again = trained(row, given)
    assert again.origin == "here" and len(taken) == 8, "no step was taken twice"
    resumed = load_transformer(again.files["main"], SPEC.tokenizer)
    assert torch.equal(weights(resumed), weights(whole))
    own, others = resumed.own.tensors(), whole.own.tensors()
    assert own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    assert not torch.equal(weights(whole), of(given["main"])) and bool(own["gate"].any())


def test_a_recipe_that_begins_anew_beside_another_state_of_it_says_so(
    given: dict[str, Path], capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    row = rows.resolve("full_var@continued", SPEC)
    left = own_cache / "varbench" / "weights" / "left" / "train.state"
    identity = {"curriculum": "full_var@continued train", "budget": asdict(replace(STEPS, batch=4, seed=1))}
    save_state(left, {"identity": identity, "step": 1200})
    trained(row, given, display=Display({}))
    told = "1,200 steps of another training (seed 1, not 0, batch 4, not 8)"
    assert f"full_var@continued: {told} lie in {left}; this one begins anew\n" in capsys.readouterr().err
    trained(row, given, batch=4, seed=1, display=Display({}))
    assert "(another start, data or schedule)" in capsys.readouterr().err
    trained(rows.expand("fixed_ratio@p10/d1", SPEC)[0], given, display=Display({}))
    assert "another training" not in capsys.readouterr().err, "it is of another recipe"
    together = own_cache / "varbench" / "weights" / "together" / "train.state.parts"
    (together / "1300").mkdir(parents=True)
    (together / "1300" / "told.json").write_text(json.dumps({"identity": identity, "step": 1300}))
    trained(row, given, seed=2, display=Display({}))
    told = "1,300 steps of another training (seed 1, not 2, batch 4, not 8)"
    assert f"{told} lie in {together}" in capsys.readouterr().err, "written by several processes"


def test_the_command_says_once_and_before_it_begins_what_a_training_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "full_var@continued", "--steps", "1", "--batch", "4", "--device", "cpu", "--dtype", "float32"]
    model = presets.preset("tiny").spec
    (stage,) = stages_of(rows.resolve("full_var@continued", model), steps=1, dtype="float32", device="cpu")
    told = f"full_var@continued: 1 step of 4 images; {stage.needed(4) / 2**30:.3g} GiB a process"
    assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count(told) == 1 and said.index(told) < said.index("training: full_var@continued")
    assert main(words) == 0
    assert told not in capsys.readouterr().err, "what is in the cache is not trained"
    assert main(["train", "base", *words[2:], "--out", str(tmp_path / "base.safetensors")]) == 0
    assert f"base: {told.partition(': ')[2]}" in capsys.readouterr().err


def test_a_copy_of_another_training_is_replaced_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["train", "full_var@continued", "--steps", "1", "--dtype", "float32", "--out", str(out)]
    record = out / "recipes" / "full_var-continued" / presets.RECORD
    assert main([*words, "--batch", "4"]) == 0 and main([*words, "--batch", "4"]) == 0
    assert "another training" not in capsys.readouterr().err
    first = json.loads(record.read_text())
    assert main([*words, "--batch", "2", "--seed", "1"]) == 0
    told = capsys.readouterr().err
    second = json.loads(record.read_text())
    assert second["stages"]["train"]["batch"] == 2
    was = f"1 steps (batch 4, seed 0, key {first['key'][:8]})"
    now = f"1 steps (batch 2, seed 1, key {second['key'][:8]})"
    assert f"another training of full_var@continued, {was} are replaced by those of {now}" in told


class Uneven(Fixed):
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(name="short", share=0.1), Stage(name="long", share=0.9))


def test_a_stage_without_steps_is_named(given: dict[str, Path]) -> None:
    row = replace(rows.resolve("full_var@continued", SPEC), schedule=Uneven(TrainStep()))
    with pytest.raises(UserError, match=r"of 3 steps none is left for the stage 'short'.*give at least 10 --steps"):
        trained(row, given, steps=3)


def test_a_recipe_that_diverges_leaves_nothing_in_the_cache(given: dict[str, Path], own_cache: Path) -> None:
    pretrained = {name: path for name, path in given.items() if name != "vae"}
    row = rows.resolve("full_var@continued", SPEC)
    with pytest.raises(UserError, match="diverged"):
        recipe_weights(row, vae=given["vae"], pretrained=pretrained, data=DATA, budget=replace(STEPS, peak_rate=1e37))
    left = [path.name for path in (own_cache / "varbench" / "weights").rglob("*") if path.is_file()]
    assert left == ["lock"]


def test_a_stage_may_be_trained_otherwise_than_the_others(given: dict[str, Path]) -> None:
    row = rows.resolve("code@trained/n1", SPEC)
    before = of(given["refiner"])
    pretrained = {name: path for name, path in given.items() if name != "vae"}

    def refined(by_stage: Any) -> Any:
        return recipe_weights(row, vae=given["vae"], pretrained=pretrained, data=DATA, budget=STEPS, by_stage=by_stage)

    usual, slow = refined(None), refined({"refiner": {"peak_rate": 1e-9, "weight_decay": 0.0}})
    assert slow.origin == "here" and refined({"refiner": {"peak_rate": 1e-9, "weight_decay": 0.0}}).origin == "cache"
    assert torch.equal(of(usual.files["main"]), of(slow.files["main"])), "the drafter is trained as before"
    moved = {
        name: (of(done.files["refiner"]) - before).abs().max() for name, done in (("usual", usual), ("slow", slow))
    }
    assert moved["slow"] < 0.01 * moved["usual"]
    stages = slow.record["stages"]
    assert (stages["refiner"]["peak_rate"], stages["drafter"]["peak_rate"]) == (1e-9, STEPS.peak_rate)
    with pytest.raises(
        UserError, match=r"stages\.refinr: no such stage; there are drafter, refiner\. Did you mean 'refiner'"
    ):
        refined({"refinr": {"peak_rate": 1e-9}})


def test_a_file_says_how_a_recipe_is_trained_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def noted(row: rows.Row, **how: Any) -> recipes.RecipeWeights:
        asked.append({"row": row.recipe_name, **how})
        return recipes.RecipeWeights(files={}, record=None, origin="cache")

    monkeypatch.setattr(recipes, "recipe_weights", noted)
    file = tmp_path / "pair.toml"
    text = 'what = "code@trained"\nsteps = 40\nrate = 3e-4\nweight-decay = 0.01\n[stages.refiner]\nrate = 1e-5\n'
    file.write_text(text)
    assert main(["train", "--config", str(file), "--steps", "20", "--mean-decay", "0.9"]) == 0
    (found,) = asked
    budget = found["budget"]
    assert (found["row"], found["by_stage"]) == ("code@trained", {"refiner": {"peak_rate": 1e-5}})
    assert (budget.steps, budget.peak_rate, budget.weight_decay, budget.mean_decay) == (20, 3e-4, 0.01, 0.9)
    for wrong, said in {
        "rats = 1": "no key 'rats'. Did you mean 'rate'?",
        "rounds = 3": "no key 'rounds'",
        "[stages.refiner]\nsteps = 3": "no key 'stages.refiner.steps'",
        "[stages.refiner]\nrate = 2": "stages.refiner.rate is 2; give 1 or less",
        "batch = [8, 16]": "batch is [8, 16]; a training has one",
        "stages = 3": "give a table for each, as in [stages.second]",
        "[train]\nrate = true": "rate is True; give a number",
    }.items():
        file.write_text(f"{wrong}\n")
        assert main(["train", "code", "--config", str(file)]) == 2
        assert said in capsys.readouterr().err
    file.write_text("[stages.refiner]\nrate = 1e-5\n")
    assert main(["train", "base", "--config", str(file)]) == 2
    assert "the training of base has no stages" in capsys.readouterr().err
