"""`varbench new-plugin`: what it writes is installable and passes its own tests as written."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import varbench
from varbench.__main__ import main
from varbench.check.templates import KINDS


@pytest.mark.slow
def test_new_packages_install_and_pass_their_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of each kind, in one environment: nothing of one stands in another's way."""
    names = {kind: f"my_{kind}" for kind in KINDS}
    for kind, name in names.items():
        assert main(["new-plugin", name, "--kind", kind, "--out", str(tmp_path)]) == 0
        written = {Path(line).relative_to(tmp_path / name).as_posix() for line in capsys.readouterr().out.splitlines()}
        assert written == {"pyproject.toml", "README.md", f"{name}/__init__.py", f"tests/test_{name}.py"}
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


def test_what_an_editable_package_reads_is_part_of_its_identity(tmp_path: Path) -> None:
    """A table beside a single module, and a helper that a function imports when it is called: nobody lists either."""
    assert main(["new-plugin", "mine", "--out", str(tmp_path)]) == 0
    project = tmp_path / "mine"
    (project / "mine" / "__init__.py").rename(project / "module")
    (project / "mine").rmdir()
    (project / "module").rename(project / "mine.py")
    told = project / "pyproject.toml"
    told.write_text(told.read_text().replace('packages = ["mine"]', 'py-modules = ["mine", "late_helper"]'))
    (project / "table.json").write_text("[1]")
    (project / "late_helper.py").write_text("FACTOR = 1")
    virtual = tmp_path / "virtual"
    venv.create(virtual, with_pip=False)
    python = str(virtual / "bin" / "python")
    (site,) = virtual.glob("lib/*/site-packages")
    (site / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    _python(
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-e",
        str(project),
    )
    (site / "varbench.pth").write_text(str(Path(str(varbench.__file__)).parent.parent))

    def hashed() -> str:
        done = subprocess.run([python, "-P", "-c", HASHED], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    hashes = [hashed()]
    for path, text in {project / "table.json": "[2]", project / "late_helper.py": "FACTOR = 2"}.items():
        path.write_text(text)
        hashes.append(hashed())
    assert len(set(hashes)) == 3
    # What a run, its page, an environment and tools leave in the project decides nothing.
    for name in ("varbench-runs/one/row.json", "elsewhere/.lock", "elsewhere/row.json", ".git/HEAD", "env/pyvenv.cfg",
                 "env/lib.py", "reports/index.html", "tests/test_more.py", "mine.egg-info/PKG-INFO"):  # fmt: skip
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("new")
    assert hashed() == hashes[-1]


HASHED = """
from varbench.rows.manager import manager
from varbench.run.identity import plugin_hash
from varbench.run.messages import ResolvedPlugin
from varbench.run.tasks.resolving import files_of
info, files = manager().info("mine"), files_of(manager().plugin("mine"))
print(plugin_hash(ResolvedPlugin(name=info.name, distribution=info.distribution, version=info.version, files=files)))
"""


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
        ("class", "is a word of Python's own"),
        ("torch", "is a module of torch, which is installed here and would be replaced"),
        ("pluggy", "is a module of pluggy"),
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
    assert f"next: cd '{tmp_path}/with a space/mine' && pip install -e '.[test]' && pytest\n" in capsys.readouterr().err
