"""The files that `varbench new-plugin` writes. `$name` is the plugin's name, `$version` varbench's version."""

from __future__ import annotations

from string import Template

from varbench.check import further_kinds, policy_kinds
from varbench.rows import FULL

PYPROJECT = Template("""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "A plugin of varbench."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["varbench>=$version"]

[project.optional-dependencies]
test = ["pytest>=8"]

# The name is what a row says, the value the module with the hooks.
[project.entry-points.varbench]
$name = "$name"

[tool.setuptools]
py-modules = ["$name"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
""")

README = Template("""\
# $name

For varbench: $summary.

    pip install -e .
    pytest$check
    $next

All of it is `$name.py`, one file. What each hook gives is said in `varbench.hookspecs`, what a policy may answer in
`varbench.policies`.
""")

CHECK = """                          # every promise that a method must keep, as a test of its own
    varbench check $name"""

TEST = Template('''\
"""The promises that every method must keep, and what this one is about."""

import $name
import pytest
from varbench.check.small_model import SPEC
from varbench.policies import Setting


@pytest.mark.varbench($name)
def test_promises(varbench_promise):
    varbench_promise()


$own
''')

TEST_WITHOUT_ROW = Template('''\
"""What the plugin is about. It makes no row, so there are no promises of a method to keep."""

import $name


$own
''')

KINDS: dict[str, tuple[str, str, str]] = {
    "depth": policy_kinds.DEPTH,
    "cache": policy_kinds.CACHE,
    "tokens": policy_kinds.TOKENS,
    "step": policy_kinds.STEP,
    "guidance": policy_kinds.GUIDANCE,
    "training": further_kinds.TRAINING,
    "transform": further_kinds.TRANSFORM,
    "calibrate": further_kinds.CALIBRATE,
    "generator": further_kinds.GENERATOR,
    "metrics": further_kinds.METRICS,
    "sections": further_kinds.SECTIONS,
}
"""For each kind: a summary, the module, and the test of its own rule."""

WITHOUT_ROW = ("metrics", "sections")
"""Kinds that add to all rows and make none."""

NEXT = {
    "generator": "varbench run --plugins $name",
    "training": "varbench run --plugins $name",
    "calibrate": "varbench calibrate $name@w1",
    "metrics": f"varbench run --plugins {FULL}",
    "sections": "varbench report --out reports",
}
"""What to run next, where that is no plan."""
DEFAULT_NEXT = "varbench plan $name$point --model var-d30"
POINTS = {"depth": "@half", "cache": "@w2", "tokens": "@r50", "step": "@fewer", "guidance": "@off2"}


def files(name: str, *, kind: str, version: str) -> dict[str, str]:
    """The package's files by their paths."""
    summary, module, own = KINDS[kind]
    makes_row = kind not in WITHOUT_ROW
    words = {
        "name": name,
        "summary": summary,
        "next": Template(NEXT.get(kind, DEFAULT_NEXT)).substitute(name=name, point=POINTS.get(kind, "")),
        "check": Template(CHECK).substitute(name=name) if makes_row else "",
        "own": Template(own).substitute(name=name).rstrip(),
        "version": version,
    }
    return {
        "pyproject.toml": PYPROJECT.substitute(words),
        "README.md": README.substitute(words),
        f"{name}.py": module,
        f"tests/test_{name}.py": (TEST if makes_row else TEST_WITHOUT_ROW).substitute(words),
    }
