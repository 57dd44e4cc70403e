"""`varbench verify`: records are held against what the same rows would be made from here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import Script, a_run, conduct, scripted

from varbench.quality.images import kept_images, samples_npz, write_png
from varbench.record import Record, row_slug
from varbench.run.recheck import Rechecked, recheck

ROW = "variant@untrained/d8"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Of a run whose children are scripted."""
    with pytest.MonkeyPatch.context() as patch, scripted(patch) as script:
        assert isinstance(script, Script)
        running = conduct(a_run(tmp_path, plugins=ROW), tmp_path)
        running.everything()
        return running.save_all()


def of(found: list[Rechecked], row: str) -> dict[str, bool | None]:
    return {one.what: one.same for one in found if one.row == row}


def test_what_is_derived_again_is_the_same(records: list[Record], tmp_path: Path) -> None:
    found = of(list(recheck(records, tmp_path)), ROW)
    assert found == {"plan": True, "plugin variant": True, "varbench": True, "inputs": True}


def test_what_was_made_from_something_else_is_named(records: list[Record], tmp_path: Path) -> None:
    (mine,) = [record for record in records if record.row.row == ROW]
    assert mine.plan is not None
    (plugin,) = mine.row.plugins
    edited = replace(
        mine,
        code_hash="0" * 64,
        plan=replace(mine.plan, digest="1" * 64),
        row=replace(mine.row, plugins=(replace(plugin, code_hash="2" * 64),)),
    )
    found = {one.what: one for one in recheck([edited], tmp_path)}
    assert {what for what, one in found.items() if one.same is False} == {"plan", "plugin variant", "varbench"}
    assert found["plan"].recorded == "1" * 64 and found["plan"].here == mine.plan.digest


def test_a_row_that_no_plugin_here_gives_is_said_and_is_no_difference(records: list[Record], tmp_path: Path) -> None:
    (mine,) = [record for record in records if record.row.row == ROW]
    found = list(recheck([replace(mine, row=replace(mine.row, row="elsewhere@d8"))], tmp_path))
    assert [one.same for one in found] == [None] and "elsewhere" in str(found[0].here)


@pytest.mark.parametrize("form", ["npz", "png"])
def test_kept_images_come_back_piece_by_piece(tmp_path: Path, form: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (23, 3, 8, 8), dtype=np.uint8)
    path = tmp_path / ("row.npz" if form == "npz" else "row")
    if form == "npz":
        with samples_npz(path, count=23, side=8) as take:
            take(images)
    else:
        write_png(path, images)
    pieces = list(kept_images(path, at_once=10))
    assert [len(piece) for piece in pieces] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(pieces), images)


@pytest.mark.slow
def test_kept_images_are_scored_again_and_other_ones_are_found_out(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wanted = (
        "--plugins",
        "full_var",
        "--quick",
        "--images",
        "40",
        "--batch",
        "20",
        "--budget",
        "0",
        "--keep-images",
        "npz",
        "--out",
        str(out),
    )

    def varbench(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "varbench", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert varbench("run", *wanted).returncode == 0
    done = varbench("verify", str(out), "--json")
    assert done.returncode == 0, done.stdout
    found = {(one["row"], one["what"]): one["same"] for one in json.loads(done.stdout)}
    assert found["full_var", "FD-shapes"] is True and found["full_var", "weights main"] is True
    path = out / "images" / f"{row_slug('full_var')}.npz"
    with np.load(path) as stored:
        images = stored["arr_0"].transpose(0, 3, 1, 2)
    with samples_npz(path, count=40, side=32) as take:
        take(np.ascontiguousarray(images[::-1] // 2))
    done = varbench("verify", str(out))
    assert done.returncode == 1 and "full_var: FD-shapes differs: recorded" in done.stdout
