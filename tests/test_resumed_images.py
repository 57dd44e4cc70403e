"""Images of a row are scored as they come; killed at any of them, a run goes on there and scores the same bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_generators import OPTIONS, TINY

from varbench.base.hashing import file_hash
from varbench.data.shapes import Shapes
from varbench.measure.calls import Chunk, balanced_labels
from varbench.quality.images import write_made
from varbench.record import encode, load_records
from varbench.run.messages import Begin, Job, Scored, Take
from varbench.run.tasks.scoring import COMPARED, Scorer

COUNT, BATCH = 640, 32


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return Shapes(side=32).images(range(COUNT))


class Process:
    """A scorer as a run has it: it dies with its memory, and only what lies in the folder is left."""

    def __init__(self, images: np.ndarray, folder: Path, **options: Any) -> None:
        self.images, self.folder = images, folder
        job = Job(task="scoring", options=replace(OPTIONS, images=COUNT, batch=BATCH, **options), model=TINY)
        self.scorer = Scorer(job, SimpleNamespace(alive=lambda text="": None))  # type: ignore[arg-type]
        self.known = 0

    def begin(self, *, upto: int = 0, keep: Path | None = None, before: int | None = None) -> int:
        groups, before = str(self.folder / "groups"), time.time_ns() if before is None else before
        message = Begin(row="a", full=False, groups=groups, upto=upto, keep=keep and str(keep), before=before)
        return self.scorer.begin(message).known

    def take(self, first: int, until: int) -> None:
        for start in range(first, until, BATCH):
            path = self.folder / "chunk.npz"
            with open(path, "wb") as file:
                write_made(file, self.images[start : start + BATCH], None)
            labels = balanced_labels(BATCH, 10, first=start)
            taken = self.scorer.take(Take(chunk=Chunk(path=str(path), sha256=file_hash(path)), labels=labels))
            self.known = taken.known

    def finish(self) -> Scored:
        return self.scorer.finish(COUNT)


def whole(images: np.ndarray, folder: Path, **options: Any) -> Scored:
    folder.mkdir()
    one = Process(images, folder, **options)
    assert one.begin() == 0
    one.take(0, COUNT)
    return one.finish()


def test_what_was_written_since_the_run_began_is_not_taken_for_an_earlier_ones(
    images: np.ndarray, tmp_path: Path
) -> None:
    """A plugin's process may write there, and date its files as it likes."""
    began = time.time_ns()
    first = Process(images, tmp_path)
    first.begin()
    first.take(0, 256)
    for path in (tmp_path / "groups").iterdir():
        os.utime(path, (0, 0))
    assert Process(images, tmp_path).begin(upto=256, before=began) == 0
    assert Process(images, tmp_path).begin(upto=256) == 256


@pytest.mark.parametrize("killed_at", [96, *(pytest.param(at, marks=pytest.mark.slow) for at in (256, 320)), 544])
def test_scores_are_the_same_bit_for_bit_wherever_it_was_killed(
    images: np.ndarray, tmp_path: Path, killed_at: int
) -> None:
    first = Process(images, tmp_path)
    first.begin()
    first.take(0, killed_at)
    known = first.known
    assert known == killed_at // 256 * 256, "what was looked at is kept, a group at a time"
    second = Process(images, tmp_path)
    assert second.begin(upto=known) == known
    second.take(known, COUNT)
    scored = second.finish()
    undisturbed = whole(images, tmp_path / "whole")
    assert encode(scored, "") == encode(undisturbed, ""), "scores, samples, oddities and all"
    assert scored.quality is not None and scored.quality.scores[0].value is not None


def test_of_more_images_than_the_asker_knows_of_the_rest_is_made_again(images: np.ndarray, tmp_path: Path) -> None:
    first = Process(images, tmp_path)
    first.begin()
    first.take(0, 544)
    assert Process(images, tmp_path).begin(upto=256) == 256
    assert Process(images, tmp_path).begin(upto=0) == 0


def test_a_torn_file_ends_what_is_known(images: np.ndarray, tmp_path: Path) -> None:
    first = Process(images, tmp_path)
    first.begin()
    first.take(0, 544)
    second = tmp_path / "groups" / "00000256.npz"
    second.write_bytes(second.read_bytes()[:1000])
    assert Process(images, tmp_path).begin(upto=512) == 256


def test_no_more_images_are_held_than_those_that_are_looked_at_together(images: np.ndarray, tmp_path: Path) -> None:
    one = Process(images, tmp_path)
    one.begin()
    one.take(0, COUNT)
    held = sum(len(some) for some in one.scorer._images) + sum(len(some) for some, _, _ in one.scorer._waiting)
    assert held <= COMPARED + 256 - BATCH


def test_images_that_were_looked_at_when_none_were_kept_are_made_again(images: np.ndarray, tmp_path: Path) -> None:
    first = Process(images, tmp_path)
    first.begin()
    first.take(0, 544)
    wanted = Process(images, tmp_path, keep_images="npz")
    assert wanted.begin(upto=512, keep=tmp_path / "row.npz") == 256, "the first group's lie there to be shown"


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("form", ["npz", "png"])
def test_images_that_are_kept_are_all_there_in_a_run_that_went_on(
    images: np.ndarray, tmp_path: Path, form: str, together: bool
) -> None:
    kept = tmp_path / ("row.npz" if form == "npz" else "row")
    first = Process(images, tmp_path, keep_images=form)
    first.begin(keep=kept if together else None)  # who makes some of a row's images leaves them to who finishes it
    first.take(0, 544)
    second = Process(images, tmp_path, keep_images=form)
    assert second.begin(upto=512, keep=kept) == 512
    second.take(512, COUNT)
    second.finish()
    if form == "npz":
        with np.load(kept) as stored:
            np.testing.assert_array_equal(stored["arr_0"], images.transpose(0, 2, 3, 1))
    else:
        assert len(list(kept.iterdir())) == COUNT


def run(out: Path, cache: Path, *more: str, site: Path | None = None) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "varbench", "run", "--plugins", "full_var", "--images", "608", "--batch", "32", "--rounds", "0",
        "--dtype", "float32", "--out", str(out), *more,
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    environment |= {} if site is None else {"PYTHONPATH": str(site)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_at(process: subprocess.Popen[str], out: Path, group: str) -> Path:
    """Kills a run as soon as this group is looked at; where it lies."""
    ends = time.monotonic() + 300
    while not (found := list(out.glob(f".parts/*.groups/{group}"))):
        assert process.poll() is None and time.monotonic() < ends, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return found[0]


def scores(out: Path) -> dict[str, Any]:
    return {
        record.row.row: json.loads(json.dumps(encode([record.quality, record.distance, record.samples], "")))
        for record in load_records([out]).records
        if record.quality is not None
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_goes_on_behind_its_first_group(tmp_path: Path) -> None:
    """As below, with groups of 32 images."""
    site, out, cache = (tmp_path / name for name in ("site", "killed", "cache"))
    site.mkdir()
    (site / "sitecustomize.py").write_text("from varbench.run import messages\nmessages.GROUP = 32\n")
    few = ("--images", "128", "--batch", "16")
    # What the run knows to be looked at is written after the group itself, and surely once the next one is.
    kept = killed_at(run(out, cache, *few, site=site), out, "00000032.npz").with_name("00000000.npz")
    written, seen = kept.stat().st_mtime_ns, set[int]()
    process = run(out, cache, *few, "--resume", site=site)
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            seen.add(kept.stat().st_mtime_ns)
        time.sleep(0.01)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert seen == {written}, "the first group is not made again"
    other = run(tmp_path / "whole", tmp_path / "other cache", *few, site=site)
    _, said = other.communicate()
    assert other.returncode == 0, said
    assert set(scores(out)) == {"full_var"} and scores(out) == scores(tmp_path / "whole")
    assert not kept.parent.exists(), "once a row is scored, nothing of it stays"


@pytest.mark.slow
@pytest.mark.idle
@pytest.mark.timeout(1500)
def test_a_run_that_is_killed_twice_ends_with_the_scores_of_one_that_was_not(tmp_path: Path) -> None:
    out, cache = tmp_path / "killed", tmp_path / "cache"
    for group in ("00000000.npz", "00000256.npz"):
        killed_at(run(out, cache, *(["--resume"] if out.exists() else [])), out, group)
    process = run(out, cache, "--resume")
    _, said = process.communicate()
    assert process.returncode == 0, said
    other = run(tmp_path / "whole", tmp_path / "other cache")
    other.communicate()
    assert other.returncode == 0
    assert scores(out) == scores(tmp_path / "whole")
    assert set(scores(out)) == {"full_var"}
    assert not list(out.glob(".parts/*.groups")), "once a row is scored, nothing of it stays"
