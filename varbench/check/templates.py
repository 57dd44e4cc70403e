"""The files that `varbench new-plugin` writes, from the texts under `assets/new_plugin/`: of each kind a module and the test of
its own rule. `$name` is the plugin's name, `$version` varbench's version."""

from __future__ import annotations

from importlib import resources
from string import Template

from varbench.rows import FULL

KINDS = {
    "depth": "runs fewer layers at the finer scales",
    "cache": "keeps the first scale and a window of recent ones in the cache",
    "tokens": "computes a share of the last scale's tokens in the FFN",
    "step": "leaves out one of the scales",
    "guidance": "stops guidance before the last scales",
    "training": "trains the full model and its first half in turn",
    "transform": "replaces modules: the FFN's weights are stored in eight bits",
    "calibrate": "finds a parameter of its own in an offline pass",
    "generator": "a model of another family in place of the whole loop",
    "metrics": "a column of its own: a figure of a row's images",
    "sections": "a panel of its own in the report",
}
"""What each begins with, in words."""

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

CHECK = """                          # every promise that a method must keep, as a test of its own
    varbench check $name"""


def files(name: str, *, kind: str, version: str) -> dict[str, str]:
    """The package's files by their paths."""
    makes_row = kind not in WITHOUT_ROW
    words = {
        "name": name,
        "summary": KINDS[kind],
        "next": Template(NEXT.get(kind, DEFAULT_NEXT)).substitute(name=name, point=POINTS.get(kind, "")),
        "check": Template(CHECK).substitute(name=name) if makes_row else "",
        "own": Template(_text(f"{kind}.test")).substitute(name=name).rstrip(),
        "version": version,
    }
    promises = "promises" if makes_row else "no_promises"
    return {
        "pyproject.toml": Template(_text("pyproject")).substitute(words),
        "README.md": Template(_text("readme")).substitute(words),
        f"{name}/__init__.py": _text(f"{kind}.module"),
        f"tests/test_{name}.py": Template(_text(promises)).substitute(words),
    }


def _text(name: str) -> str:
    return (resources.files("varbench") / "assets" / "new_plugin" / f"{name}.txt").read_text(encoding="utf-8")
