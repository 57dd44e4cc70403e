"""Every code block of the documentation runs as it stands, and the hook reference is what the specifications say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import golden_files as golden
import models
import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("tutorial", "plans", "results", "measuring", "api", "operating")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")
BY_HAND = {"text"}
"""Blocks that show output."""


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))


def python(folder: Path, *arguments: str) -> str:
    """Runs Python in the page's folder, where what the page installs can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return done.stdout


def command(folder: Path, line: str) -> None:
    if line == "pip install -e .":
        python(
            folder,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--target",
            "site",
            ".",
        )
    else:
        program, *arguments = line.split()
        assert program == "varbench", line
        python(folder, "-m", "varbench", *arguments)


LONG = {"tutorial", "operating"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in LONG else []) for page in PAGES]
)
def test_every_block_runs(page: str, tmp_path: Path) -> None:
    program: list[str] = []
    ran = 0
    for kind, text in blocks(page):
        file = FILE.match(text)
        if file:
            (tmp_path / file[1]).write_text(text[file.end() :], encoding="utf-8")
        elif kind == "console":
            for line in text.splitlines():
                assert line.startswith("$ "), line
                command(tmp_path, line.removeprefix("$ "))
        elif kind == "python":
            program.append(text)
        else:
            assert kind in BY_HAND, kind
            continue
        ran += 1
    (tmp_path / "page.py").write_text("\n".join(program), encoding="utf-8")
    python(tmp_path, "page.py")
    assert ran
    for test in tmp_path.glob("test_*.py"):
        collected = python(
            tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "runs or deterministic", test.name
        )
        assert "2 passed" in collected


def test_the_hook_reference_is_made_from_the_specifications() -> None:
    spec = importlib.util.spec_from_file_location("make_hooks", DOCS / "make_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "hooks.md").read_text(encoding="utf-8") == module.reference(), "run: python docs/make_hooks.py"


def test_every_hook_example_runs() -> None:
    found = blocks("hooks")
    assert len(found) >= 12
    for kind, text in found:
        assert kind == "python"
        namespace: dict[str, object] = {}
        exec(text, namespace)
        assert any(name.startswith("varbench_") for name in namespace)


def test_links_lead_to_pages() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_says_how_to_use_official_checkpoints(tmp_path: Path) -> None:
    """Its first Python block runs on files under the official names, of a small model that speaks as many codes."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    program = next(text for kind, text in BLOCK.findall(readme) if kind == "python")
    tokenizer = replace(models.TOKENIZER, vocabulary=4096)
    spec = replace(models.SPEC, depth=16, width=32, heads=1, classes=1000, tokenizer=tokenizer)
    files = golden.save_checkpoints(tmp_path, spec)
    files["vae"].rename(tmp_path / "vae_ch160v4096z32.pth")
    files["var"].rename(tmp_path / "var_d16.pth")
    (tmp_path / "example.py").write_text(program, encoding="utf-8")
    python(tmp_path, "example.py")
