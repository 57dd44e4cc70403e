"""The package as a user gets it: a wheel, away from the checkout, and the README's own lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    base = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:  # not a checkout of git: a copy of its files
        files = [
            str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts
        ]
    else:
        files = listed.stdout.splitlines()
    for name in files:
        if not name.startswith(("tests/", "reports/")) and (ROOT / name).is_file():
            (base / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (base / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(base), str(base / "source")]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, capture_output=True)
    (built,) = base.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An empty folder, and the environment in which the wheel's packages come first."""
    base = tmp_path_factory.mktemp("outside")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(base / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    (base / "elsewhere").mkdir()
    return base / "elsewhere", {**os.environ, "PYTHONPATH": str(base / "site"), "COLUMNS": "100"}


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_needed_and_no_bare_plugins(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "varbench", "varbench_plugins", "varbench_baselines"
    }  # fmt: skip
    folders = {"varbench": "varbench", "plugins": "varbench_plugins", "baselines": "varbench_baselines"}
    for folder, installed in folders.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert f"{installed}/{path.relative_to(ROOT / folder).as_posix()}" in names


@pytest.mark.slow
def test_the_wheel_names_itself(wheel: Path) -> None:
    from varbench import __version__

    archive = zipfile.ZipFile(wheel)
    (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("dist-info/METADATA")]
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nRequires-Python: <3.14,>=3.11\n" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_versions_that_were_tried_are_the_ends_of_the_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [need for need in project["dependencies"] if need.startswith("torch>")]
    versions = (ROOT / "CONTRIBUTING.md").read_text().partition("**Versions.**")[2].partition("\n\n")[0]
    for name, bounds in (("Python", project["requires-python"]), ("torch", torch)):
        (major, least), (_, above) = sorted(re.findall(r"(\d+)\.(\d+)", bounds), key=lambda bound: int(bound[1]))
        ends = {f"{major}.{least}", f"{major}.{int(above) - 1}"}
        assert set(re.findall(rf"{name} (\d+\.\d+)", versions)) == ends
        assert name == "torch" or f"Python {major}.{least} to {major}.{int(above) - 1}" in README


@pytest.mark.slow
def test_it_works_from_the_wheel_outside_the_checkout(outside: tuple[Path, dict[str, str]]) -> None:
    folder, environment = outside
    script = (
        "import runpy, sys, varbench, varbench_plugins.variant, varbench_baselines.code as code\n"
        "assert all('site' in m.__file__ for m in (varbench, varbench_plugins.variant, code)), varbench.__file__\n"
        "sys.argv = ['varbench', *sys.argv[1:]]\n"
        "runpy.run_module('varbench', run_name='__main__')"
    )
    for arguments in (["list"], ["plan", "code@n4"], ["sample", "variant@d8", "--weights", "random", "--labels", "1"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (folder / "sample.png").is_file()


def test_the_readme_opens_with_two_complete_lines() -> None:
    run, test = re.findall(r"```sh\n(.*?)\n```", README, flags=re.DOTALL)[:2]
    for line, install in ((run, ".venv/bin/pip install ."), (test, ".venv/bin/pip install '.[test]'")):
        steps = line.split(" && ")
        assert steps[:2] == ["python3 -m venv .venv", install]
        assert "\n" not in line
        assert line in README[:2000], "on the first screen"


def test_ci_checks_what_is_checked_at_each_commit_and_runs_both_lines_of_the_readme() -> None:
    """The run line from the wheel, in another folder and environment; the test line as it stands."""
    ci = (ROOT / ".ci" / "run").read_text()
    checks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert checks == ["ruff format --check", "ruff check", "mypy"]
    places = [ci.index(f".venv/bin/{check}") for check in checks]
    places += [
        ci.index(part) for part in ('bash -c "$test_line" 2>&1', 'ended release "$release"', "-m 'slow and not idle'")
    ]
    assert places == sorted(places), "what is quick comes first, and the release goes on beside it"
    begun = [ci.index(part) for part in ("release() {", "-m build", 'cd "$work/outside" &&', "beside release release")]
    assert begun == sorted(begun) and begun[-1] < places[0], "and what takes long begins beside it"
    assert "set -euo pipefail" in ci, "the first failure ends it, within a pipe too"


def test_ci_ends_where_a_browser_or_ray_was_not_there(tmp_path: Path) -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    guard = ci[ci.index("for reason in") : ci.index('step "all is well"')]

    def ended(log: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "tests.log").write_text(f"....s..\n{log}\n7 passed in 1.00s\n")
        words = ["bash", "-euo", "pipefail", "-c", guard]
        return subprocess.run(words, env={**os.environ, "work": str(tmp_path)}, capture_output=True, text=True)

    assert ended("SKIPPED [1] tests/test_gpu.py:40: needs a CUDA GPU").returncode == 0
    for file, marked in (
        ("test_report_browser.py", r"CHROMIUM and DRIVER\),"),
        ("test_spread.py", r'importorskip\("ray",'),
    ):
        text = (ROOT / "tests" / file).read_text()
        reasons = re.findall(marked + r'\s*reason="(.*?)"', text)
        assert reasons and len(reasons) == len(re.findall(marked, text)), "each says why"
        for reason in reasons:
            done = ended(f"SKIPPED [1] tests/{file}:40: {reason}")
            assert done.returncode == 1 and "were skipped, and they must not be" in done.stderr, reason


def test_the_readmes_plugin_is_one(tmp_path: Path) -> None:
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "hookimpl" in block]
    (tmp_path / "every_second.py").write_text(source)
    (entry,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    points = tomllib.loads(entry)["project"]["entry-points"]["varbench"]
    script = (
        "from importlib.metadata import EntryPoint\nfrom varbench import rows\nfrom varbench.plan import presets\n"
        "from varbench.plan.compiler import compile_plan\nfrom varbench.rows.manager import PluginManager\n"
        f"found = PluginManager([EntryPoint(n, v, 'varbench') for n, v in {points!r}.items()])\n"
        "tiny = presets.preset('tiny').spec\n"
        "plan = compile_plan(tiny, rows.resolve('every_second', tiny, manager=found).policies)\n"
        "print([len(step.calls) for step in plan.steps])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[16, 16, 16, 8, 8, 8]\n", done.stderr
