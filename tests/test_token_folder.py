"""Training images as tokens in a folder: made once, in shards, by several processes, and read as a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import BUDGET, SPEC, fresh, trained, weights

from varbench.__main__ import main
from varbench.data.folder import ImageFolder, open_folder, read_crop, read_image
from varbench.data.shapes import Shapes
from varbench.errors import UserError
from varbench.model.tokenizer import Tokenizer
from varbench.train import budgets, token_folder
from varbench.train.token_folder import open_tokens, write_shards
from varbench.train.tokens import tokens_of
from varbench.train.trainer import Budget

CLASSES = ("one", "two")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.for_model(SPEC).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """48 images of two classes, a little wider than high."""
    root = tmp_path_factory.mktemp("data") / "folder"
    for index, image in enumerate(Shapes(side=32).images(range(48))):
        path = root / CLASSES[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).resize((40, 32)).save(path)
    return open_folder(root, side=16)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_folder, "SHARD", 16)


def made(folder: Path, data: Any, tokenizer: Tokenizer, **given: Any) -> token_folder.TokenFolder:
    write_shards(folder, data, tokenizer, model=SPEC, **given)
    return open_tokens(folder)


def test_it_holds_what_the_images_hold(data: ImageFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = made(tmp_path / "tokens", data, tokenizer)
    assert (found.name, found.classes, found.side) == ("folder", data.classes, 16)
    assert len(found.training) == len(data.training) and len(found.validation) == len(data.validation)
    for mine, theirs in ((found.training, data.training), (found.validation, data.validation)):
        ours = tokens_of(found, tokenizer, model=SPEC, indices=mine)
        wanted = tokens_of(data, tokenizer, model=SPEC, indices=theirs)
        np.testing.assert_array_equal(ours.tokens_NL[:], wanted.tokens_NL[:])
        np.testing.assert_array_equal(ours.labels_N, wanted.labels_N)
        few = np.array([len(mine) - 1, 0, 2])
        np.testing.assert_array_equal(ours.tokens_NL[few], wanted.tokens_NL[few])


def test_a_training_on_it_is_the_training_on_the_images(
    data: ImageFolder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    found = made(tmp_path / "tokens", data, tokenizer)
    budget = replace(BUDGET, images=len(data.training))
    models = []
    for number, one in enumerate((found, data)):
        tokens = tokens_of(one, tokenizer, model=SPEC, indices=one.training)
        models.append(trained(tokenizer, tokens, tmp_path / str(number), budget=budget)[0])
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(fresh()))


def test_every_crop_is_a_row_and_the_first_is_the_middle(
    data: ImageFolder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    once, thrice = made(tmp_path / "1", data, tokenizer), made(tmp_path / "3", data, tokenizer, crops=3)
    assert len(thrice.training) == 3 * len(once.training) and len(thrice.validation) == len(once.validation)
    one, three = (tokens_of(one, tokenizer, model=SPEC, indices=one.training) for one in (once, thrice))
    np.testing.assert_array_equal(three.tokens_NL[np.arange(0, len(thrice.training), 3)], one.tokens_NL[:])
    np.testing.assert_array_equal(three.labels_N.reshape(-1, 3), one.labels_N[:, None].repeat(3, axis=1))
    assert (three.tokens_NL[np.arange(1, len(thrice.training), 3)] != one.tokens_NL[:]).any()
    first = data.crops([0, 1], number=1, seed=0)
    np.testing.assert_array_equal(first, data.crops([0, 1], number=1, seed=0))
    assert (first != data.crops([0, 1], number=2, seed=0)).any()


def test_crops_are_of_an_image_an_eighth_larger(data: ImageFolder) -> None:
    path = data.files[0]
    corners = [read_crop(path, side=16, place=place) for place in ((0.0, 0.0), (0.999, 0.999))]
    assert all(corner.shape == (3, 16, 16) for corner in corners)
    assert (corners[0] != corners[1]).any() and (corners[0] != read_image(path, side=16)).any()


def test_processes_share_the_shards_and_a_killed_one_goes_on(
    data: ImageFolder, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole", data, tokenizer)
    folder = tmp_path / "shared"
    write_shards(folder, data, tokenizer, model=SPEC, rank=0, count=2)
    with pytest.raises(UserError, match=r"lacks \d of \d shards; run the same"):
        open_tokens(folder)
    write_shards(folder, data, tokenizer, model=SPEC, rank=1, count=2)
    assert open_tokens(folder).fingerprint == whole.fingerprint

    there = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    (folder / "00001.npy").unlink()
    write_shards(folder, data, tokenizer, model=SPEC)
    assert open_tokens(folder).fingerprint == whole.fingerprint
    kept = [path for path, time in there.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == len(there) - 1, "what was there is not made again"


def test_what_is_torn_or_of_something_else_is_said(data: ImageFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    found = made(folder, data, tokenizer)
    with pytest.raises(UserError, match="with crops 1, and 2 was asked for; what is there stays"):
        write_shards(folder, data, tokenizer, model=SPEC, crops=2)
    with pytest.raises(UserError, match=r"at scales \[1, 2, 4\]"):
        tokens_of(found, tokenizer, model=replace(SPEC, sides=(1, 2, 3, 4)), indices=found.training)
    with pytest.raises(UserError, match="holds tokens and no images"):
        found.images([0])
    shard = folder / "00000.npy"
    whole = shard.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:200], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match="00000.npy is not what was written there; remove it"):
            open_tokens(folder)
    shard.unlink()
    write_shards(folder, data, tokenizer, model=SPEC)
    assert open_tokens(folder).fingerprint == found.fingerprint, "it was made anew"
    with pytest.raises(UserError, match="is no folder of tokens"):
        open_tokens(tmp_path)
    with pytest.raises(UserError, match="has whole images only"):
        write_shards(tmp_path / "shapes", Shapes(side=16), tokenizer, model=SPEC, crops=2)


def test_the_commands_make_it_and_train_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, weights_file = str(tmp_path / "tokens"), str(tmp_path / "base.safetensors")
    assert main(["tokens", "--images", "40", "--out", out]) == 0
    assert "40 images of 10 classes in 1 crop" in capsys.readouterr().out
    words = ["train", "base", "--tokens", out, "--steps", "1", "--batch", "4", "--out", weights_file, "--device", "cpu"]
    assert main(words) == 0 and Path(weights_file).is_file()
    assert main(["tokens", "--out", str(tmp_path / "all")]) == 2
    assert "say how many by --images" in capsys.readouterr().err
    assert main(["train", "judge", "--tokens", out]) == 2
    assert main(["tokens", "--images", "0", "--out", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("what", ["base", "full_var@continued"])
def test_every_row_is_trained_on_however_few_images_the_procedural_set_would_give(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = str(tmp_path / "tokens"), list[np.ndarray]()
    read = token_folder._Tokens.__getitem__

    def noted(self: token_folder._Tokens, rows: Any) -> Any:
        seen.append(self._indices[rows])
        return read(self, rows)

    monkeypatch.setattr(budgets, "BASE", replace(budgets.BASE, images=8))
    monkeypatch.setitem(Budget.__init__.__kwdefaults__, "images", 8)
    monkeypatch.setattr(token_folder._Tokens, "__getitem__", noted)
    assert main(["tokens", "--images", "40", "--out", out]) == 0
    words = ["train", what, "--tokens", out, "--steps", "5", "--batch", "8", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "trained")]) == 0
    assert sorted(np.concatenate(seen)) == list(range(40)), "five steps of eight: each of them once"
