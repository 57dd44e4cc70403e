"""All images of a row, kept on request: whole or not at all, and made again where an earlier run's scores would do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scripted import a_run, conduct
from test_generators import OPTIONS, TINY

from varbench.base.hashing import file_hash
from varbench.base.places import cache_folder
from varbench.measure.calls import Chunk, balanced_labels
from varbench.quality import copies
from varbench.quality.images import write_made
from varbench.run.messages import Begin, Job, Take
from varbench.run.tasks import scoring
from varbench.run.tasks.scoring import Scorer

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)


def scorer() -> Scorer:
    job = Job(task="scoring", options=replace(OPTIONS, images=40, keep_images="npz"), model=TINY)
    return Scorer(job, SimpleNamespace(alive=lambda text="": None))  # type: ignore[arg-type]


def give(to: Scorer, folder: Path, first: int) -> None:
    path = folder / "chunk.npz"
    with open(path, "wb") as file:
        write_made(file, IMAGES[first : first + 20], None)
    labels = balanced_labels(20, 10, first=first)
    to.take(Take(chunk=Chunk(path=str(path), sha256=file_hash(path)), labels=labels))


@pytest.mark.parametrize("form", ["npz", "png"])
def test_they_lie_there_in_order_once_the_row_has_come_to_its_end(tmp_path: Path, form: str) -> None:
    kept = tmp_path / "images" / ("row.npz" if form == "npz" else "row")
    mine = scorer()
    mine.begin(Begin(row="a", full=False, keep=str(kept)))
    give(mine, tmp_path, 0)
    assert not kept.exists(), "half of them could pass for all"
    give(mine, tmp_path, 20)
    mine.finish(40)
    if form == "npz":
        with np.load(kept) as stored:
            found = stored["arr_0"]
    else:
        found = np.stack([np.asarray(Image.open(path)) for path in sorted(kept.iterdir())])
    np.testing.assert_array_equal(found, IMAGES.transpose(0, 2, 3, 1))


def test_images_are_looked_at_with_the_threads_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "GROUP", 20)
    counts = list[int]()

    def hashes(images: np.ndarray) -> np.ndarray:
        counts.append(torch.get_num_threads())
        return pixel_hashes(images)

    pixel_hashes, before, mine = copies.pixel_hashes, torch.get_num_threads(), scorer()
    monkeypatch.setattr(copies, "pixel_hashes", hashes)
    for given in (before + 1, None):
        mine.begin(Begin(row="a", full=False, threads=given))
        give(mine, tmp_path, 0)
        assert torch.get_num_threads() == before, "all of them for what comes when all are made"
    assert counts == [before + 1, before]


@pytest.mark.parametrize("name", ["row.npz", "row"])
def test_of_a_row_that_breaks_off_nothing_stays(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "GROUP", 20)
    mine = scorer()
    mine.begin(Begin(row="a", full=False, keep=str(tmp_path / "images" / name)))
    give(mine, tmp_path, 0)
    mine.begin(Begin(row="b", full=False))
    assert list((tmp_path / "images").iterdir()) == []


def test_scores_of_an_earlier_run_do_not_stand_for_images_that_are_wanted(tmp_path: Path) -> None:
    run = a_run(tmp_path, plugins="variant@untrained/d8")
    kept = conduct(replace(run, options=replace(run.options, keep_images="npz")), tmp_path)
    path = kept._images_path("variant@untrained/d8")
    assert path is not None and path.parent == tmp_path / "images" and path.suffix == ".npz"
    assert not kept._are_kept("variant@untrained/d8")
    path.parent.mkdir()
    path.touch()
    assert kept._are_kept("variant@untrained/d8")
    assert conduct(run, tmp_path)._are_kept("variant@untrained/d8"), "where none are wanted, none are missed"


def test_the_full_models_images_count_if_they_lay_there_whole_when_the_run_began(tmp_path: Path) -> None:
    """What another process wrote meanwhile is not what other rows are held against; nor does a file that is cut short cost a row."""
    job = Job(task="scoring", options=replace(OPTIONS, images=40), model=TINY, full_images="inputs")
    place = cache_folder("full-images") / "inputs.npz"
    place.parent.mkdir(parents=True)

    def distance(*, before: int) -> float | None:
        mine = Scorer(job, SimpleNamespace(alive=lambda text="": None))  # type: ignore[arg-type]
        mine.begin(Begin(row="a", full=False, before=before))
        give(mine, tmp_path, 0)
        give(mine, tmp_path, 20)
        found = mine.finish(40).distance
        return None if found is None else found.feature_distance

    began = time.time_ns() - 10**9
    with open(place, "wb") as file:
        write_made(file, IMAGES, None)
    assert distance(before=began) is None
    assert distance(before=time.time_ns() + 10**9) == 0
    place.write_bytes(place.read_bytes()[:500])
    assert distance(before=time.time_ns() + 10**9) is None
