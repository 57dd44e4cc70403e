"""What several tests share: strangers' packages, really installed, and the command line in a process of its own."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# A shell's job in the background is deaf to Ctrl-C, and so would be what tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Workers of a parallel run share the cores: two threads each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PACKAGES = Path(__file__).parent / "packages"

LONGEST = (
    "test_spread.py",
    "test_round.py",
    "test_quality.py",
    "test_faults.py",
    "test_real_formats.py",
    "test_full_disk.py",
    "test_cheats.py",
    "test_new_plugin.py",
)
"""Files whose slow tests begin first, so that no worker is left with one of them at the end."""

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test finds what another has left, or leaves anything in the user's cache; but kernels are compiled once."""
    cache, shared = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp() / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    shared.mkdir(exist_ok=True)
    (cache / "varbench").mkdir()
    (cache / "varbench/kernels").symlink_to(shared)
    return cache


@pytest.fixture
def needs_kernels(own_cache: Path) -> None:
    """Of tests about our kernels in C, and about the work of the engine that has them."""
    from varbench.model import c_kernels

    if c_kernels.built().library is None:
        pytest.skip(c_kernels.built().how)


@pytest.fixture(autouse=True, scope="module")
def _modules_are_no_garbage() -> None:
    """As in a run's processes: what looks for tensors between steps need not go through all that was imported."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put on the path, into which pip has installed every package under `tests/packages`."""
    base = tmp_path_factory.mktemp("strangers")
    sources = base / "sources"
    # Copied, since building leaves files beside the sources.
    subprocess.run(["cp", "-r", str(PACKAGES), str(sources)], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    packages = [str(folder) for folder in sorted(sources.iterdir())]
    subprocess.run([*install, "--target", str(base / "site"), *packages], check=True, capture_output=True)
    return base / "site"


@pytest.fixture
def varbench(tmp_path: Path) -> CommandLine:
    """Runs `varbench ARGUMENTS` in an empty folder; `path` goes before the installed packages."""

    def run(*arguments: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "100", **variables}
        environment.pop("VARBENCH_DISABLE", None) if "VARBENCH_DISABLE" not in variables else None
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        return subprocess.run(
            [sys.executable, "-m", "varbench", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


def runs(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
