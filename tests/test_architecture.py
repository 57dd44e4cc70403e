"""The house: rooms in one order, imports that only point down, names that occur once."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import varbench

PACKAGE = Path(str(varbench.__file__)).parent

# From the ground up: a room may import from those that stand before it, and from itself.
ROOMS = (
    "errors", "base", "spec", "policies", "supernet", "plan", "record", "hookspecs", "rows", "model", "data", "engine", "quality",
    "train", "measure", "run", "show", "check", "commands", "__main__",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module by its dotted name below `varbench`, packages without `__init__`."""
    found = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path
        for parts, path in found.items()
        if parts != ("__init__",)
    }


def imports() -> dict[str, set[str]]:
    """What each module imports of `varbench`, within functions and for types too; the package itself only hands things on."""
    known, found = modules(), {}
    for name, path in known.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "varbench":
                module = (node.module or "").partition(".")[2]
                inner = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
                wanted |= (inner & known.keys()) | ({module} & known.keys() if inner - known.keys() else set())
            elif isinstance(node, ast.Import):
                wanted |= {alias.name.partition(".")[2] for alias in node.names} & known.keys()
        found[name] = wanted - {name}
    return found


def test_imports_only_point_down() -> None:
    up = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in sorted(others)
        if ROOMS.index(other.partition(".")[0]) > ROOMS.index(name.partition(".")[0])
    ]
    assert not up, "\n".join(up)


def test_there_is_no_circle() -> None:
    # A package's front hands on what its modules give; what a module takes from its own front would be a circle.
    tuple(TopologicalSorter(imports()).static_order())


def test_names_occur_once() -> None:
    names = Counter(name.rpartition(".")[2] for name in modules() if not name.startswith("commands."))
    assert [name for name, count in names.items() if count > 1] == []
    classes = Counter(
        node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_the_listing_is_short() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__pycache__",
        "__init__.py",
    }
    assert {room.removesuffix(".py") for room in rooms} - {"assets"} == set(ROOMS)
    assert len(rooms) <= 22
