"""Four idx files as a data set: read, split, refused; and the preset `fashion`, whose images are the user's own."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scripted import a_run, conduct, options, scripted

from varbench.__main__ import main
from varbench.base.hashing import file_hash
from varbench.data import idx
from varbench.data.folder import ImageFolder
from varbench.data.given import image_set
from varbench.data.idx import FILES, open_idx
from varbench.data.shapes import Shapes
from varbench.engine.loading import load_pipeline
from varbench.errors import UserError
from varbench.model.state_files import read_record
from varbench.plan import presets
from varbench.quality import load_network
from varbench.record import load_records
from varbench.run.scoring_networks import ScoringNetworks

CLASSES, TRAINED, TESTED = 10, 480, 240
DEBIANS = "/usr/share/datasets/fashion-mnist"
FASHION_MNIST = "278c78f5d7344b0e10ad2541c2ab60c6965f80316cb365f151db8b2644b26234"
"""Fingerprint of its files at 32 pixels."""
Write = Callable[..., Path]


def drawn(count: int, *, first: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images of 28 pixels that tell their number and label: the first two pixels; labels in no order, and not equally many."""
    labels = np.random.RandomState(first).randint(CLASSES, size=count).astype(np.uint8)
    images = np.random.RandomState(first + 1).randint(1, 255, size=(count, 28, 28)).astype(np.uint8)
    images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = np.arange(count) // 250, np.arange(count) % 250, labels
    images[:, 0, 3] = 1 + (first > 0)
    return images, labels


def packed(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a set's four files into a folder of this name."""

    def files(name: str = "ten", *, zipped: bool = True, change: int = 0) -> Path:
        arrays = [*drawn(TRAINED, first=0), *drawn(TESTED, first=10)]
        arrays[2][-1, 27, 27] = 7 + change
        folder = tmp_path / name
        folder.mkdir()
        for file, array in zip(FILES, arrays, strict=True):
            held = packed(array)
            (folder / (f"{file}.gz" if zipped else file)).write_bytes(gzip.compress(held, 1) if zipped else held)
        return folder

    return files


def test_pixels_stay_as_they_are_and_what_publishers_hold_out_is_for_tests_alone(write: Write) -> None:
    data = open_idx(write(), side=32)
    assert (data.name, data.classes, data.side) == ("ten", tuple("0123456789"), 32)
    assert (data.training, data.validation, data.test) == (range(440), range(440, 480), range(480, 720))
    whole = data.images(range(720))
    assert whole.shape == (720, 3, 32, 32) and whole.dtype == np.uint8
    assert (whole[:, 0] == whole[:, 1]).all() and (whole[:, 0] == whole[:, 2]).all()
    middle = whole[:, 0, 2:30, 2:30]
    assert whole[:, 0].astype(int).sum() == middle.astype(int).sum(), "black around them"
    for part, (images, labels) in zip(
        (range(480), range(480, 720)), (drawn(TRAINED, first=0), drawn(TESTED, first=10)), strict=True
    ):
        numbers = middle[part, 0, 0].astype(int) * 250 + middle[part, 0, 1]
        assert sorted(numbers) == list(range(len(images))), "each once, training images and test images apart"
        assert (data.labels(part) == labels[numbers]).all()
        same = middle[part] == images[numbers]
        same[:, 27, 27] = True  # which the fixture has changed in one of them
        assert same.all()


def test_classes_come_in_turn_so_that_any_beginning_has_as_many_of_each(write: Write) -> None:
    data = open_idx(write(), side=32)
    for part in (data.training, data.test):
        assert data.labels(part[:100]).tolist() == list(range(10)) * 10
    with pytest.raises(UserError, match="the images 0 to 719, and 720 to 720 was asked for"):
        data.images([720])


def test_a_set_is_named_by_what_its_files_hold(write: Write) -> None:
    found = open_idx(write(), side=32)
    assert open_idx(write("same", zipped=False), side=32).fingerprint == found.fingerprint
    assert open_idx(write("changed", change=1), side=32).fingerprint != found.fingerprint
    assert open_idx(write("again"), side=40).fingerprint != found.fingerprint


def test_only_fashion_mnists_own_labels_bring_its_names(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of other things have files of the same names and sizes."""
    labels = drawn(TRAINED, first=0)[1]
    monkeypatch.setattr(idx, "FASHION_LABELS", hashlib.sha256(labels.tobytes()).hexdigest())
    data = open_idx(write(), side=32)
    assert (data.name, data.classes) == ("fashion-mnist", idx.FASHION_CLASSES)


def test_files_that_are_not_whole_are_refused_with_what_and_where(write: Write) -> None:
    folder = write()
    images, labels = (folder / f"{name}.gz" for name in FILES[:2])
    whole = labels.read_bytes()
    labels.unlink()
    with pytest.raises(UserError, match=r"ten lacks train-labels-idx1-ubyte \(or the same with \.gz\)"):
        image_set(str(folder), model="tiny", side=32)
    labels.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz cannot be unpacked"):
        open_idx(folder, side=32)
    labels.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is no whole idx file of bytes in 1 dimensions"):
        open_idx(folder, side=32)
    labels.write_bytes(gzip.compress(packed(np.zeros(3, np.uint8))))
    with pytest.raises(UserError, match="ten has 480 images for 3 labels"):
        open_idx(folder, side=32)
    labels.write_bytes(whole)
    images.write_bytes(whole)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is no whole idx file of bytes in 3 dimensions"):
        open_idx(folder, side=32)


@pytest.mark.parametrize("side", [16, 64, 256])
def test_images_that_do_not_fit_the_model_are_refused(write: Write, side: int) -> None:
    with pytest.raises(UserError, match=f"images of 28 x 28 pixels, which do not fit the model's {side} x {side}"):
        open_idx(write(), side=side)


def test_a_folder_is_read_as_what_it_holds(write: Write, tmp_path: Path) -> None:
    from PIL import Image

    assert isinstance(image_set(str(write()), model="tiny", side=32), idx.IdxSet)
    for name in "ab":
        (tmp_path / "classes" / name).mkdir(parents=True)
        for place in range(10):
            Image.new("L", (8, 8), place).save(tmp_path / "classes" / name / f"{place}.png")
    assert isinstance(image_set(str(tmp_path / "classes"), model="fashion", side=32), ImageFolder)
    assert isinstance(image_set(None, model="tiny", side=32), Shapes)


# The preset


def test_fashion_is_tiny_by_another_name_and_files_are_known_by_theirs() -> None:
    fashion, tiny = (presets.preset(name).spec for name in ("fashion", "tiny"))
    assert replace(fashion, name="tiny") == tiny
    assert presets.of_sizes(fashion).spec.name == "fashion"
    assert presets.of_sizes(replace(fashion, name="another")).spec.name == "tiny"


def test_nothing_of_fashion_is_trained_on_drawn_shapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    for what in ("tokenizer", "base", "features", "variant@progressive"):
        assert main(["train", what, "--model", "fashion", "--steps", "1", "--out", str(out)]) == 2
        assert "fashion is about images that do not come with the package: give --data" in capsys.readouterr().err
    assert not out.exists()


def test_without_the_files_rows_run_and_quality_says_what_lies_missing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"model": "fashion", "weights": None, "batch": None, "plugins": "variant@d8"}
    found = options(**asked)
    assert (found.images, found.batch, found.device) == (0, 32, "cpu")
    with scripted(monkeypatch):
        run = a_run(tmp_path, **asked, rounds=1)
        assert run.rows["variant@d8"].resolved.weight_set == "pretrained", "no recipe is trained"
        conduct(run, tmp_path).everything()
    records = load_records([tmp_path]).records
    record = next(one for one in records if one.row.row == "variant@d8")
    assert record.timing is not None and record.quality is None
    assert re.search("give --data FOLDER.*dataset-fashion-mnist", record.missing["quality"])
    full = next(one for one in records if one.row.row == "full_var")
    (told,) = [notice for notice in full.warnings if notice.text.startswith("quality is left out")]
    assert told.next_command is not None and "--data FOLDER" in told.next_command
    assert "--images 2000" in told.next_command
    asked["data"] = str(write())
    assert options(**asked).images == 2_000
    with scripted(monkeypatch):
        given = a_run(tmp_path, **asked)
    assert given.rows["variant@d8"].resolved.weight_set == "variant@progressive"


def networks(**given: Any) -> ScoringNetworks:
    return ScoringNetworks(options(model="fashion", **given), side=32, device="cpu")


def test_what_looks_at_fashion_is_its_own_and_another_sets_classes_are_not_judged(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = networks()
    assert without.sees and not without.scores
    assert without.class_names == idx.FASHION_CLASSES
    folder = write()
    digits = networks(data=str(folder), images=40)
    assert digits.scores and digits.judge is None, "garments are not digits"
    assert digits.extractor.distance_name == "FD-fashion-mnist", "named after what the network was trained on"
    monkeypatch.setattr(idx, "FASHION_LABELS", hashlib.sha256(drawn(TRAINED, first=0)[1].tobytes()).hexdigest())
    garments = networks(data=str(folder), images=40)
    assert garments.judge is not None and garments.class_names == idx.FASHION_CLASSES
    assert garments.reference.source == "fashion-mnist, held out"


def test_what_ships_for_fashion_was_trained_together_on_the_real_set() -> None:
    files = presets.shipped_files("fashion")
    looking = {kind: load_network(presets.scoring_network("fashion", kind)) for kind in ("features", "judge")}
    told = {part: read_record(path) or {} for part, path in files.items()}
    told |= {kind: network.record for kind, network in looking.items()}
    assert {record["data"] for record in told.values()} == {FASHION_MNIST}
    assert told["main"]["tokenizer"] == file_hash(files["vae"])
    assert all(network.config.classes == idx.FASHION_CLASSES for network in looking.values())
    assert all("--data fashion-mnist" in record["command"] for record in told.values())
    folder = presets.asset_folder("fashion")
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 16e6


def test_its_shipped_weights_make_garments_of_their_class() -> None:
    labels = [place % CLASSES for place in range(60)]
    made = load_pipeline("fashion").generate(labels, cfg=1.5, seed=0).images
    judge = load_network(presets.scoring_network("fashion", "judge")).module
    right = judge(made.float()).argmax(dim=1) == torch.tensor(labels)
    assert right.float().mean() > 0.7, "chance is a tenth"


@pytest.mark.skipif(not Path(DEBIANS).is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_files_are_known() -> None:
    data = open_idx(DEBIANS, side=32)
    assert (data.name, data.fingerprint) == ("fashion-mnist", FASHION_MNIST)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [55_000, 5_000, 10_000]
