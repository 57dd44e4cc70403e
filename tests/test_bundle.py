"""A trained recipe as one file: everything that takes weights takes it, and gives what the recipe gives."""

from __future__ import annotations

import json
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scripted import a_run, options

from varbench.__main__ import main
from varbench.engine.loading import load_pipeline
from varbench.errors import CheckpointError, UserError
from varbench.model.bundle import MANIFEST, opened, recipe_in
from varbench.model.state_files import read_state
from varbench.plan import presets
from varbench.record.origin import PublishedLine
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.weight_files import weight_files

RECIPE = "variant@progressive"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "variant.varbench"
    assert main(["export", RECIPE, "--out", str(path)]) == 0
    return path


def test_it_is_one_file_and_says_what_it_is(bundle: Path) -> None:
    assert recipe_in(bundle) == RECIPE
    found = opened(bundle)
    assert found is not None and set(found.files) == {"vae", "main"}
    assert found.model == presets.preset("tiny").spec
    assert found.record["row"] == RECIPE
    shipped = presets.recipe_files("tiny", RECIPE)
    assert found.files["main"].read_bytes() == shipped["main"].read_bytes()
    assert recipe_in(shipped["main"]) is None and opened(shipped["main"]) is None


def test_what_ships_as_a_difference_is_packed_whole(tmp_path: Path) -> None:
    packed = tmp_path / "routers.varbench"
    assert main(["export", "dmoe@routers", "--out", str(packed)]) == 0
    ours, theirs = opened(packed), presets.recipe_files("tiny", "dmoe@routers")["main"]
    assert ours is not None and ours.files["main"].stat().st_size > 10 * theirs.stat().st_size
    mine, shipped = (read_state(path, part="main") for path in (ours.files["main"], theirs))
    assert mine.keys() == shipped.keys() and all(torch.equal(mine[name], shipped[name]) for name in mine)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [packed.name]


def test_the_api_takes_it_by_path(bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # these are the weights of that recipe
        ours = load_pipeline(var=bundle).generate([1, 2], method="variant@d8")
    theirs = load_pipeline("tiny", recipe=RECIPE).generate([1, 2], method="variant@d8")
    assert torch.equal(ours.tokens, theirs.tokens)


def test_sample_takes_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    words = ["sample", "variant@d8", "--weights", str(bundle), "--labels", "1", "--out", str(out)]
    assert main(words) == 0 and out.is_file()
    assert "is made for weights" not in capsys.readouterr().err


def test_a_run_takes_it_and_trains_nothing(bundle: Path, tmp_path: Path) -> None:
    chosen = options(weights=str(bundle), plugins="variant@d8", images=200)
    assert (chosen.model, chosen.vae) == ("tiny", None), "the sizes are read off the file"
    files = weight_files(chosen, {})
    assert files is not None and set(files) == {"vae", "main"}
    run = a_run(tmp_path, weights=str(bundle), plugins="variant@d8,fixed_ratio@p05/d8", images=200)
    assert [weights.trains for weights in run.weight_sets] == [None]
    own, other = (
        fill(run, run.rows[name], Findings(), floors={}).warnings for name in ("variant@d8", "fixed_ratio@p05/d8")
    )
    assert not any("nothing was trained" in notice.text for notice in own)
    assert any("nothing was trained" in notice.text for notice in other), "they are another recipe's"


def test_printed_figures_stand_beside_the_row_alone_whose_weights_they_could_be_of(
    bundle: Path, tmp_path: Path
) -> None:
    line = PublishedLine(figures={"fid": 1.92}, grade="primary", source="a table")

    def printed(**given: Any) -> dict[str, bool]:
        run = a_run(tmp_path, plugins="full_var,variant@d8,fixed_ratio@p05/d8,llamagen", images=200, **given)
        rows = {name: replace(row, resolved=replace(row.resolved, published=(line,))) for name, row in run.rows.items()}
        return {name: bool(fill(run, row, Findings(), floors={}).published) for name, row in rows.items()}

    given = printed(weights=str(bundle))
    own = {"variant@d8", *(name for name in given if name.startswith("llamagen"))}
    assert {name for name, there in given.items() if there} == own and "fixed_ratio@p05/d8" in given
    assert len(own) > 1, "what has weights of its own runs on them"
    assert set(printed().values()) == {True}


def test_a_torn_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:

    told = json.loads(zipfile.ZipFile(bundle).read(MANIFEST))

    with zipfile.ZipFile(bundle) as archive, zipfile.ZipFile(tmp_path / "other.varbench", "w") as other:
        other.writestr(MANIFEST, json.dumps({**told, "note": "another"}))
        other.writestr("vae.safetensors", archive.read("vae.safetensors"))
        other.writestr("main.safetensors", archive.read("main.safetensors")[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"its main has the sha256 .* was packed"):
        opened(tmp_path / "other.varbench")
    with zipfile.ZipFile(tmp_path / "newer.varbench", "w") as newer:
        newer.writestr(MANIFEST, json.dumps({**told, "bundle": 2}))
    with pytest.raises(CheckpointError, match="bundle of version 2"):
        opened(tmp_path / "newer.varbench")
    with pytest.raises(UserError):
        load_pipeline(var=tmp_path / "nothing.varbench")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["full_var"], "nothing that is trained"),
        (["fixed_ratio@p05,variant"], "2 recipes"),
        (["variant", "--steps", "7"], "train it first"),
        (["variant", "--weights", "random"], "random"),
    ],
)
def test_what_cannot_be_exported_is_said(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *words, "--out", str(tmp_path / "there.varbench")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "there.varbench").exists()


def test_a_training_with_options_of_its_own_is_exported_from_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    """Neither tokens nor rate are options of `export`, so its own could never name this training. Its tokenizer is a pickle, as
    the official one."""
    tokens, wrote, packed, vae = (str(tmp_path / name) for name in ("tokens", "wrote", "packed.varbench", "vae.pth"))
    torch.save(load_file(presets.shipped_files("tiny")["vae"]), vae)
    assert main(["tokens", "--images", "8", "--vae", vae, "--out", tokens]) == 0
    words = ["full_var@continued", "--tokens", tokens, "--vae", vae, "--rate", "1e-4", "--steps", "2", "--batch", "4"]
    assert main(["train", *words, "--out", wrote]) == 0
    assert main(["export", "full_var@continued", "--steps", "2", "--out", packed]) == 2
    assert "give what was written there by --from DIR" in capsys.readouterr().err
    assert main(["export", "full_var@continued", "--from", wrote, "--vae", vae, "--out", packed]) == 0
    found = opened(packed)
    trained = Path(wrote) / "recipes" / "full_var-continued" / "main.safetensors"
    assert found is not None and found.files["main"].read_bytes() == trained.read_bytes()
    assert found.record["stages"]["train"]["peak_rate"] == 1e-4
    assert main(["sample", "full_var", "--weights", packed, "--labels", "1", "--out", str(tmp_path / "grid.png")]) == 0
    (kept,) = (own_cache / "varbench" / "weights").iterdir()
    again = ["full_var@continued", "--from", str(kept), "--vae", vae, "--out", str(tmp_path / "kept.varbench")]
    assert main(["export", *again]) == 0

    capsys.readouterr()
    for words, said in {
        ("full_var@continued",): "was trained with another vae than",
        ("full_var@continued", "--steps", "2"): "--steps has no effect on what was trained before",
        ("full_var@continued", "--vae", vae, "--weights", vae): "has no effect, since",
        ("full_var@continued", "--model", "var-d16"): "holds weights of tiny; give --model tiny",
        ("fixed_ratio@p05",): "holds nothing that was trained to its end",
    }.items():
        assert main(["export", *words, "--from", wrote, "--out", str(tmp_path / "no.varbench")]) == 2
        assert said in capsys.readouterr().err
    trained.write_bytes(trained.read_bytes()[:-1] + b"x")
    assert main(["export", "full_var@continued", "--from", wrote, "--out", str(tmp_path / "no.varbench")]) == 2
    assert "its main is not the file that was written there" in capsys.readouterr().err
    assert not (tmp_path / "no.varbench").exists()


def test_nothing_is_overwritten(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", RECIPE, "--out", str(bundle)]) == 2
    assert "is there already" in capsys.readouterr().err
