"""Trained recipes that come with the package: found by what they were trained from, and never used for another training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CommandLine
from record_factory import make_record
from safetensors.torch import save_file
from scripted import a_run, options
from test_story import NAME, installed
from test_training import DATA, SPEC
from test_training_recipes import STEPS, given  # noqa: F401  the fixture

import varbench_plugins.variant
from varbench import rows
from varbench.__main__ import main
from varbench.base.hashing import file_hash
from varbench.data.shapes import Shapes
from varbench.errors import CheckpointError
from varbench.model.state_files import read_record, read_state
from varbench.plan import presets
from varbench.policies import TrainStep
from varbench.record import HELD_OUT_LOSS, Evaluation, Record, Score
from varbench.run.findings import Seen
from varbench.run.kept_parts import KeptParts
from varbench.run.messages import Job, Trained
from varbench.run.prepare import prepare
from varbench.run.tasks import training
from varbench.show.entries import blocks_of
from varbench.show.training_notes import training_notes
from varbench.train import recipe_key
from varbench.train.budgets import GENERATOR
from varbench.train.generators import generator_weights, trained_generator
from varbench.train.recipes import RecipeWeights, recipe_weights, weights_ahead
from varbench.train.shipped import Shipped, not_what_shipped, put, shipped_with

ROW = "fixed_ratio@p10/d1"


@pytest.fixture
def weights(given: dict[str, Path], tmp_path: Path) -> Any:  # noqa: F811
    """Asks for the weights of a row, of which some ship."""
    pretrained = {name: path for name, path in given.items() if name != "vae"}

    def ask(row: rows.Row, *, ready: bool = True, steps: int = 8) -> RecipeWeights:
        budget = replace(STEPS, steps=steps)
        folder = Shipped(assets=tmp_path / "ships", budget=STEPS)
        return recipe_weights(
            row, vae=given["vae"], pretrained=pretrained, data=DATA, budget=budget, shipped=folder if ready else None
        )

    row = rows.resolve(ROW, SPEC)
    made = ask(row, ready=False)
    own = {name: path for name, path in made.files.items() if path != pretrained[name]}
    assert made.record is not None
    put(tmp_path / "ships", row.recipe_name, files=own, record=made.record)
    return ask


def test_what_ships_is_loaded_and_not_trained(weights: Any, tmp_path: Path) -> None:
    found = weights(rows.resolve("fixed_ratio@p10/full", SPEC), steps=3)
    assert (found.origin, found.note) == ("shipped", None)
    assert found.files["main"] == tmp_path / "ships" / "recipes" / "fixed_ratio-p10" / "main.safetensors"
    assert found.record["stages"]["train"]["steps"] == 8, "as long as what ships was trained, whatever is asked else"
    assert weights(rows.resolve("variant@d1", SPEC)).origin == "here", "nothing ships for it"


def test_weights_of_another_schedule_are_named_and_not_used(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(type(rows.resolve(ROW, SPEC).schedule)):  # type: ignore[misc]
        def at(self, stage: Any, step: int, total: int, uniform: Any) -> TrainStep:
            return TrainStep() if step == total - 1 else super().at(stage, step, total, uniform)

    row = rows.resolve(ROW, SPEC)
    schedule = object.__new__(Later)
    vars(schedule).update(vars(row.schedule))
    found = weights(replace(row, schedule=schedule))
    assert found.origin == "here" and "fixed_ratio@p10 are of another schedule" in found.note


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_file_that_is_not_the_one_that_shipped_is_named_and_not_used(weights: Any, tmp_path: Path, harm: str) -> None:
    path = tmp_path / "ships" / "recipes" / "fixed_ratio-p10" / "main.safetensors"
    if harm == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    found = weights(rows.resolve(ROW, SPEC))
    assert found.origin == "cache" and str(path) in found.note


def test_another_torch_or_a_further_neutral_field_keeps_the_weights(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.__version__", "99.0")
    assert recipe_key._not_neutral(TrainStep()) == {} and recipe_key._not_neutral(TrainStep(point="d2")) == {
        "point": "d2"
    }
    assert weights(rows.resolve(ROW, SPEC)).origin == "shipped"


def test_where_weights_would_come_from_is_known_ahead(given: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    """A dry run says it by recipe."""
    asked: dict[str, Any] = {
        "vae": given["vae"],
        "pretrained": {name: path for name, path in given.items() if name != "vae"},
        "data": DATA,
        "budget": STEPS,
    }
    row = rows.resolve(ROW, SPEC)
    assert weights_ahead(row, **asked) is None
    done = recipe_weights(row, **asked)
    found = weights_ahead(row, **asked)
    assert found is not None and found.origin == "cache" and found.files == done.files
    assert done.record is not None
    put(tmp_path / "ships", row.recipe_name, files={"main": done.files["main"]}, record=done.record)
    ready = Shipped(assets=tmp_path / "ships", budget=STEPS)
    found = weights_ahead(row, **asked, shipped=ready)
    assert found is not None and found.origin == "shipped"


def test_a_dry_run_says_which_recipes_ship(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wanted = ["run", "--plugins", "variant@d8,fixed_ratio@p10/d8:draw=d8", "--dry-run", "--out", str(tmp_path / "run")]
    assert main(wanted) == 0
    told = capsys.readouterr().out
    assert "weights that ship: variant@progressive; to be trained: fixed_ratio@p10" in told


@pytest.mark.slow
def test_a_method_under_another_name_gets_what_its_training_shipped(
    varbench: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its name nor that of a folder is what weights are found by."""
    site = tmp_path / "site"
    shutil.copytree(Path(str(varbench_plugins.variant.__file__)).parent, site / "moved")
    installed(site, monkeypatch, NAME, "moved")
    theirs: dict[str, Any] = {"path": site, "VARBENCH_DISABLE": "variant"}
    told = varbench("run", "--plugins", f"{NAME}@d8", "--dry-run", "--out", "run", **theirs)
    assert f"weights that ship: {NAME}@progressive" in told.stdout and "to be trained" not in told.stdout, told.stderr
    drawn = {}
    for name, where in (("variant", {}), (NAME, theirs)):
        done = varbench("sample", f"{name}@d8", "--labels", "1", "--out", f"{name}.png", **where)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        drawn[name] = (tmp_path / f"{name}.png").read_bytes()
    assert drawn[NAME] == drawn["variant"]


def test_a_folders_name_says_nothing(weights: Any, tmp_path: Path) -> None:
    ships = tmp_path / "ships" / "recipes"
    (ships / "fixed_ratio-p10").rename(ships / "any")
    found = weights(rows.resolve(ROW, SPEC))
    assert found.origin == "shipped" and found.files["main"] == ships / "any" / "main.safetensors"


def test_weights_that_lie_ready_are_told_with_their_hashes() -> None:
    """By which a dry run finds what earlier runs have measured of them."""
    files = {part: str(path) for part, path in presets.shipped_files("tiny").items()}
    row, said = "variant@d8", list[Any]()
    job = Job(
        task="training",
        options=options(plugins=row),
        model=presets.preset("tiny").spec,
        rows=(row,),
        files=files,
        look_only=True,
    )
    training.run(job, SimpleNamespace(send=said.append))  # type: ignore[arg-type]
    main = file_hash(presets.recipe_files("tiny", "variant@progressive")["main"])
    assert [(found.origins, found.hashes[row]["main"]) for found in said] == [({row: "shipped"}, main)]


def test_other_seeds_and_steps_have_nothing_that_ships() -> None:
    had = presets.preset("tiny").shipped_steps
    assert shipped_with("tiny", seed=0, steps=None) and shipped_with("tiny", seed=0, steps=had)
    assert shipped_with("tiny", seed=1, steps=None) is None and shipped_with("tiny", seed=0, steps=240) is None
    assert shipped_with("var-d30", seed=0, steps=None) is None


TINY = presets.asset_folder("tiny") / "recipes"


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in TINY.glob("*/record.json")))
def test_what_ships_for_tiny_is_what_todays_code_would_train(folder: str) -> None:
    """Fails where a schedule, a base model, the data or the budget was changed and the weights were not trained again."""
    recipe = json.loads((TINY / folder / presets.RECORD).read_text())["row"]
    (row, *_) = rows.expand(recipe, presets.preset("tiny").spec)
    assert shipped_for(row) == ("shipped", None)


def test_a_point_with_a_policy_of_its_own_shares_what_ships_for_its_recipe() -> None:
    assert shipped_for(rows.resolve("dmoe@routers/t70", presets.preset("tiny").spec)) == ("shipped", None)


def shipped_for(row: rows.Row) -> tuple[str, str | None]:
    """Where its weights come from, with what is said of them; a training has a step."""
    further = dict(row.policies.backbones)
    files = presets.shipped_files("tiny", further)
    ready = shipped_with("tiny", seed=0, steps=None)
    assert ready is not None
    if trained_generator(row):
        given: dict[str, Any] = {"vae": files["vae"], "main": files["main"], "data": Shapes(side=32)}
        found = generator_weights(row, **given, budget=replace(GENERATOR, steps=1), shipped=ready)
        return found.origin, found.note
    found = recipe_weights(
        row,
        vae=files.pop("vae"),
        pretrained=files,
        data=Shapes(side=32),
        budget=replace(ready.budget, steps=1),
        shipped=ready,
    )
    return found.origin, found.note


def test_the_page_says_where_weights_come_from_and_which_had_fewer_steps() -> None:
    records = [make_record(name) for name in ("variant@progressive/d8", "variant@other/d8")]
    for place, changes in enumerate(
        ({"origin": "shipped", "device": "cpu"}, {"origin": "here", "steps": 60, "seconds": 20.0})
    ):
        training = records[place].training
        assert training is not None
        records[place] = replace(records[place], training=replace(training, **changes))
    (block,) = blocks_of(records)
    assert set(training_notes(block)[:-1]) == {
        "Weights of variant@progressive: ship with varbench, trained for 200 steps on cpu, in 60 s at most.",
        "Weights of variant@other: trained in this run for 60 steps, in 20 s at most.",
    }
    assert "not to be compared in quality: variant@other. --steps 200 trains all alike" in training_notes(block)[-1]
    assert len(training_notes(blocks_of(records[:1])[0])) == 1


def looked_at(row: str, *losses: float, steps: int = 2000) -> Record:
    """Looks at d8 at even steps, the last at the end."""
    record = make_record(row)
    assert record.training is not None
    apart = steps // (len(losses) - 1)
    looks = tuple(
        Evaluation(
            step=place * apart,
            point="d8",
            score=Score(name=HELD_OUT_LOSS, value=loss, n=64, better="lower", implementation="varbench"),
        )
        for place, loss in enumerate(losses)
    )
    return replace(record, training=replace(record.training, steps=steps, evaluations=looks))


def test_the_page_says_whether_longer_training_would_change_the_weights() -> None:
    def told(*records: Record) -> list[str]:
        (block,) = blocks_of(records)
        return [note for note in training_notes(block) if "trained out" in note.lower()]

    rested = looked_at("variant@rested/d8", 9.0, 4.0, 3.0, 2.5, 2.2, 2.1, 2.015, 2.01, 2.0)
    moving = looked_at("variant@moving/d8", 9.0, 4.0, 3.0, 2.5, 2.2, 2.1, 2.06, 2.03, 2.0)
    assert told(rested) == [
        "Trained out: their held-out losses over the last quarter of the steps moved by at most 1%."
    ]
    (note,) = told(rested, moving)
    assert note.startswith("Not trained out") and note.endswith("the most: variant@moving (d8 3.0%).")
    assert told(looked_at("variant@short/d8", 9.0, 2.0)) == [], "one look in the last quarter says nothing"


def test_other_weights_of_the_same_recipe_make_its_rows_another_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of an earlier run hold for the weights that it had."""
    real = presets.asset_folder("tiny")
    for path in real.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    told = {
        name: presets.recipe_folder(tmp_path, name) / presets.RECORD
        for name in ("variant@progressive", "fixed_ratio@p05")
    }
    for path in told.values():
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    monkeypatch.setattr(presets, "asset_folder", lambda name: tmp_path)

    def inputs() -> dict[str, str]:
        found = prepare(options(plugins="variant@d8,fixed_ratio@p05/d8,fixed_ratio@p10/d8", model="tiny"), name="a")
        return {name: row.inputs for name, row in found.rows.items()}

    before = inputs()
    told["variant@progressive"].write_text('{"key": "another"}')
    now = inputs()
    # Of the last nothing has the name, so any may be its own.
    assert {name for name in before if before[name] != now[name]} == {"variant@d8", "fixed_ratio@p10/d8"}


def test_parts_of_a_run_belong_to_the_weights_that_made_them(tmp_path: Path) -> None:
    parts = KeptParts(a_run(tmp_path, plugins="variant@d8"), tmp_path)
    weights = (None, *(Trained(log=None, files={}, hashes={"main": sha256}) for sha256 in ("one", "other")))
    assert len({parts.path(Seen, "variant@d8", trained=trained) for trained in weights}) == 3


def test_what_was_not_trained_ships_once(tmp_path: Path) -> None:
    base = {"a": torch.ones(1000), "b": torch.zeros(10)}
    own = {**base, "b": torch.ones(10), "c": torch.ones(3)}
    (tmp_path / "ships").mkdir()
    save_file(base, tmp_path / "ships" / "base.safetensors")
    save_file(own, tmp_path / "trained.safetensors", {"record": '{"row": "some@recipe"}'})
    folder = put(
        tmp_path / "ships", "some@recipe", files={"main": tmp_path / "trained.safetensors"}, record={"key": "k"}
    )
    small = folder / "main.safetensors"
    assert small.stat().st_size < 1000
    found = read_state(small, part="x")
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)
    assert read_record(small) == {"row": "some@recipe"}
    shipped = Shipped(assets=tmp_path / "ships", budget=STEPS)
    ready = shipped.of_key("k")
    assert ready is not None and ready[0] == {"main": small} and not_what_shipped(*ready) is None

    save_file({**base, "a": torch.zeros(1000)}, tmp_path / "ships" / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"only what differs from .*base.safetensors.*another file"):
        read_state(small, part="x")
    (tmp_path / "ships" / "base.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not there"):
        read_state(small, part="x")


def test_what_was_trained_as_a_whole_ships_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "ships").mkdir()
    save_file({"a": torch.ones(1000)}, tmp_path / "ships" / "base.safetensors")
    save_file({"a": torch.zeros(1000)}, tmp_path / "trained.safetensors")
    folder = put(tmp_path / "ships", "some@recipe", files={"main": tmp_path / "trained.safetensors"}, record={})
    assert (folder / "main.safetensors").read_bytes() == (tmp_path / "trained.safetensors").read_bytes()
