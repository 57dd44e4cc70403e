"""`varbench new-plugin`: what it writes is installable and passes its own tests as written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from varbench.__main__ import main
from varbench.check.templates import KINDS


@pytest.mark.slow
def test_new_packages_install_and_pass_their_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of each kind, in one environment: nothing of one stands in another's way."""
    names = {kind: f"my_{kind}" for kind in KINDS}
    for kind, name in names.items():
        assert main(["new-plugin", name, "--kind", kind, "--out", str(tmp_path)]) == 0
        written = {Path(line).relative_to(tmp_path / name).as_posix() for line in capsys.readouterr().out.splitlines()}
        assert written == {"pyproject.toml", "README.md", f"{name}.py", f"tests/test_{name}.py"}
    folders, site = [str(tmp_path / name) for name in names.values()], tmp_path / "site"
    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    _python(*install, "--target", str(site), *folders)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    listed = _python("-m", "varbench", "list", "plugins", environment=environment)
    assert [name for name in names.values() if name not in listed] == []
    # Whose modules come from where they were installed.
    quiet = ("-q", "-p", "no:cacheprovider", "-o", "pythonpath=", "--rootdir", str(tmp_path))
    out = _python("-m", "pytest", *quiet, *folders, environment=environment)
    assert " passed" in out
    assert "failed" not in out


def _python(*arguments: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["new-plugin", "mine", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my-method", "is no Python identifier"),
        ("class", "is no Python identifier"),
        ("9lives", "is no Python identifier"),
        ("random", "is the name of a module"),
        ("variant", "is a plugin of varbench already"),
    ],
)
def test_names_that_cannot_work_are_refused(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-plugin", name, "--out", str(tmp_path)]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_the_next_command_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "mine", "--out", str(tmp_path / "with a space")]) == 0
    assert f"next: cd '{tmp_path}/with a space/mine' && pip install -e . && pytest\n" in capsys.readouterr().err
