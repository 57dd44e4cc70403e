"""A disk that fills up while a run is under way: what is there stays whole, the run says what to do, and goes on from there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from varbench.record import Status, load_records

Fill = Callable[[subprocess.Popen[str]], Callable[[], None]]


def by_limit(folder: Path) -> Fill:
    """From now on no file of the run may grow beyond 4 KiB, and a record is larger."""
    import resource

    def fill(process: subprocess.Popen[str]) -> Callable[[], None]:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        return lambda: None

    return fill


def by_disk(folder: Path) -> Fill:
    """The run's folder is a small disk of its own, and another file takes all that is left."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk of its own needs root and mount: {mounted.stderr.decode().strip()}")

    def fill(process: subprocess.Popen[str]) -> Callable[[], None]:
        filler = folder / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        return filler.unlink

    return fill


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    yield folder
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "varbench", "run", "--weights", "random", "--batch", "1", "--dtype", "float32", "--rounds", "1",
        "--budget", "0", "--out", str(out), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit or tmpfs")
@pytest.mark.parametrize("way", [by_limit, by_disk])
def test_a_full_disk_costs_nothing_that_was_measured(way: Callable[[Path], Fill], unmounted: Path) -> None:
    fill = way(unmounted)
    out = unmounted / "run"
    done, errors = start(out, "--plugins", "full_var").communicate()
    assert done, errors
    whole = {path: path.read_bytes() for path in out.glob("*.json")}
    assert len(whole) == 2

    process = start(out, "--plugins", "variant@d8", "--resume")
    before = set(out.glob(".parts/*.done.json"))
    while process.poll() is None and not (measured := set(out.glob(".parts/*.done.json")) - before):
        time.sleep(0.02)
    make_room = fill(process)
    _, errors = process.communicate()
    assert process.returncode == 5, errors
    last = errors.strip().splitlines()[-2:]
    assert str(out) in last[0], "the place that is full"
    assert "MiB are free there" in last[0]
    assert "Traceback" not in errors
    assert last[1].startswith("once files can be written, go on with: varbench run")
    assert {path: path.read_bytes() for path in whole} == whole
    statuses = {record.row.row: record.status for record in load_records([out]).records}
    assert statuses["variant@d8"] is Status.INTERRUPTED
    assert not list(out.rglob("*.tmp"))

    make_room()
    times = {path: path.stat().st_mtime_ns for path in measured}
    again = start(out, "--plugins", "variant@d8", "--resume")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in measured} == times, "what was measured is not measured again"
    assert {record.status for record in load_records([out]).records} == {Status.COMPLETE}
