"""What a plugin does wrong costs its own row: real plugins that crash, hang, gobble, lie, in one real run of children.

Memory faults run under a limit in the child, so that nobody's machine suffers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from varbench.record import Record, Status, Verdict, load_records

PLUGINS = {
    "crashing": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hanging": "time.sleep(3600)",
    "gobbling": "KEPT.append([numpy.empty(1 << 28, numpy.uint8) for _ in range(1 << 10)])",
    "leaking": "KEPT.append(torch.zeros(1 << 16))",
    "meddling": "torch.set_default_dtype(torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32)",
    "raising": "raise RuntimeError('a fault of its own')",
    "quitting": "sys.exit(0)",
    "fickle": "x_BLC.mul_(torch.rand_like(x_BLC) * 4)",
}
"""Name, and what happens each time the plugin is asked which tokens to compute."""

POLICY = """
import os, signal, sys, time
import numpy
import torch
from varbench import hookimpl
from varbench.policies import Settings, TokenPolicy

KEPT = []


class Faulty(TokenPolicy):
    def __init__(self, model):
        self.model = model

    def tokens(self, layer, scale, sublayer):
        return self.model.tokens[scale] - 1 if (layer, scale, sublayer) == (0, self.model.scales - 1, "ffn") else None

    def pick(self, x_BLC, count, *, layer, scale, sublayer):
        {fault}
        return torch.arange(count, device=x_BLC.device).expand(len(x_BLC), -1)

    def fill(self, computed_BnC, places_Bn, remembered_BlC, *, length, layer, scale, sublayer):
        return torch.nn.functional.pad(computed_BnC, (0, 0, 0, length - computed_BnC.shape[1]))


@hookimpl
def varbench_settings(model):
    return Settings()


@hookimpl
def varbench_token_policy(setting, model):
    return Faulty(model)
"""

GENERATOR = """
import torch
from varbench import hookimpl
from varbench.policies import Generator, Settings, Work


class Faulty(Generator):
    trained = False

    def load(self, *, device, dtype, seed):
        pass

    def generate(self, labels, *, seed, first_image):
        return {images}

    def work(self, batch):
        return Work()


@hookimpl
def varbench_settings(model):
    return Settings()


@hookimpl
def varbench_generator(setting, model):
    return Faulty()
"""

GENERATORS = {
    "stingy": "torch.zeros(len(labels) - 1, 3, 32, 32)",
    "void": "torch.full((len(labels), 3, 32, 32), float('nan'))",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like an installed distribution with one plugin for every fault."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "faults-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: faults\nVersion: 1.0\n")
    names = (*PLUGINS, *GENERATORS)
    points = "\n".join(f"{name} = faults_{name}" for name in names)
    info.joinpath("entry_points.txt").write_text(f"[varbench]\n{points}\n")
    for name, fault in PLUGINS.items():
        folder.joinpath(f"faults_{name}.py").write_text(POLICY.replace("{fault}", fault))
    for name, images in GENERATORS.items():
        folder.joinpath(f"faults_{name}.py").write_text(GENERATOR.replace("{images}", images))
    return folder


def start(site: Path, out: Path, plugins: str, *more: str) -> subprocess.Popen[str]:
    places = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    command = [
        sys.executable, "-m", "varbench", "run", "--plugins", plugins, "--weights", "random", "--batch", "2", "--dtype",
        "float32", "--rounds", "1", "--out", str(out), "--memory-limit", "4", "--budget", "0", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Record], str]:
    """One run of every fault beside a sound row: exit code, records by row, stderr."""
    out = tmp_path_factory.mktemp("faults") / "run"
    process = start(site, out, ",".join((*PLUGINS, *GENERATORS, "variant@d2")), "--timeout", "30")
    _, said = process.communicate()
    return process.returncode, {record.row.row: record for record in load_records([out]).records}, said


@pytest.mark.slow
@pytest.mark.timeout(1500)
class TestOneRunOfEveryFault:
    @pytest.mark.parametrize(
        ("row", "status", "words"),
        [
            ("crashing", Status.CRASHED, "SIGSEGV"),
            ("hanging", Status.TIMEOUT, "30 s"),
            ("gobbling", Status.OUT_OF_MEMORY_HOST, "MemoryError"),
            ("raising", Status.FAILED, "a fault of its own"),
            ("quitting", Status.FAILED, "sys.exit(0)"),
            ("stingy", Status.WRONG_OUTPUT, "and"),
            ("void", Status.WRONG_OUTPUT, "NaN"),
        ],
    )
    def test_a_fault_has_its_status(
        self, run: tuple[int, dict[str, Record], str], row: str, status: Status, words: str
    ) -> None:
        record = run[1][row]
        assert record.status is status, record.reason
        assert words in (record.reason or "")

    @pytest.mark.parametrize(
        ("row", "words"),
        [("leaking", "not given back"), ("meddling", "torch default dtype"), ("fickle", "gave other tokens")],
    )
    def test_a_lie_makes_the_row_invalid(self, run: tuple[int, dict[str, Record], str], row: str, words: str) -> None:
        record = run[1][row]
        assert record.status is Status.COMPLETE, record.reason
        assert record.validity.verdict is Verdict.INVALID
        assert words in "; ".join(record.validity.reasons)

    def test_the_other_rows_are_intact(self, run: tuple[int, dict[str, Record], str]) -> None:
        code, records, _ = run
        assert code == 3
        for name in ("full_var", "full_var:accounting=upstream", "variant@d2"):
            assert (records[name].status, records[name].validity.verdict) == (Status.COMPLETE, Verdict.VALID)

    def test_a_traceback_is_kept(self, run: tuple[int, dict[str, Record], str]) -> None:
        traceback = run[1]["raising"].traceback
        assert traceback is not None
        assert "faults_raising.py" in traceback


def wait_for(out: Path, pattern: str) -> None:
    deadline = time.monotonic() + 300
    while not list(out.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_parent_that_is_killed_leaves_a_run_that_can_go_on(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(site, out, "variant@d2")
    wait_for(out, ".parts/*.done.json")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in out.glob(".parts/*.done.json")}
    assert finished
    again = start(site, out, "variant@d2", "--resume")
    said, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "valid" in said
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert {record.status for record in load_records([out]).records} == {Status.COMPLETE}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_leaves_records_and_says_how_to_go_on(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(site, out, "hanging")
    wait_for(out, "hanging-*.json")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert {record.status for record in load_records([out]).records} == {Status.INTERRUPTED}
