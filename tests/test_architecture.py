"""The house: rooms in one order, imports that only point down, names that occur once."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import varbench

PACKAGE = Path(str(varbench.__file__)).parent

# From the ground up: a room may import from those that stand before it, and from itself.
ROOMS = (
    "errors", "base", "spec", "experts", "policies", "supernet", "plan", "record", "hookspecs", "rows", "model", "data", "engine", "quality",
    "train", "measure", "run", "show", "check", "commands", "__main__",
)  # fmt: skip


# What a plugin may import of varbench; everything else may change under it. Beside these, what `varbench` itself hands on.
PUBLIC = {
    "errors", "spec", "experts", "experts.near_largest", "experts.routers", "policies", "supernet", "record", "record.sections", "engine.calibration",
    "quality.torchvision_shim", "show.claims",
}  # fmt: skip
SHIPPED = (PACKAGE.parent / "plugins", PACKAGE.parent / "baselines")


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
    trees = [ast.parse(path.read_text()) for path in modules().values()]
    classes = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    types = Counter(chain(classes, *map(aliases, trees)))
    assert [name for name, count in types.items() if count > 1] == []


def aliases(tree: ast.Module) -> list[str]:
    """Names of types that a module makes of others. A type variable stands for any, and is no type."""
    made = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    return [
        name
        for node in made
        if (name := ast.unparse(node.targets[0])).strip("_")[0].isupper() and not name.isupper()
        if not ast.unparse(node.value).startswith("TypeVar(")
    ]


def test_the_listing_is_short() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__pycache__",
        "__init__.py",
    }
    assert {room.removesuffix(".py") for room in rooms} - {"assets"} == set(ROOMS)
    assert len(rooms) <= 22


def test_the_page_of_the_house_is_in_step_with_it() -> None:
    """Its table has every room in order, and the modules that its walks name are there."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == ROOMS
    rooms, walks = page.split("## Three walks")
    named = re.findall(r"`([\w/]+\.py)`", walks)
    assert len(named) > 20
    assert [name for name in named if not (PACKAGE / name).is_file()] == []
    tasks = {path.stem for path in (PACKAGE / "run" / "tasks").glob("*.py")} - {"__init__"}
    # Looking at files before the run is no part of it.
    assert tasks - {"inspecting"} == tasks & set(re.findall(r"[│├] (\w+) ", rooms))


def test_the_public_face_is_told_to_authors() -> None:
    told = (
        (PACKAGE.parent / "docs" / "tutorial.md")
        .read_text()
        .partition("What a plugin may import")[2]
        .partition("\n\n")[0]
    )
    assert {name.removeprefix("varbench").removeprefix(".") for name in re.findall(r"`([.\w]+)`", told)} - {
        ""
    } == PUBLIC


def test_plugins_import_the_public_face_only_and_not_each_other() -> None:
    reached = []
    for folder in SHIPPED:
        for path in folder.rglob("*.py"):
            own = path.relative_to(folder).parts[0].removesuffix(".py")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    wanted = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                else:
                    continue
                reached += [f"{path}: {name}" for name in wanted if not _may_import(name, folder.name, own)]
    assert not reached, "\n".join(reached)


def _may_import(name: str, folder: str, own: str) -> bool:
    package, _, inner = name.partition(".")
    if package == "varbench":
        return inner in {*varbench.__all__, *PUBLIC} or inner.rpartition(".")[0] in PUBLIC
    return not package.startswith("varbench_") or name.startswith(f"varbench_{folder}.{own}.")


ENGLISH = {"code", "dit", "guidance", "smaller"}
"""Names that are words too: looked for as rows and strings only."""
KINDS = {"guidance"}
"""Those of them that are a kind of policy as well: looked for as rows only."""
EXAMPLE = re.compile(r"^ *[(\"f]*  varbench |^  variant   variant@d8 ")
"""Lines of help that show a command as it is typed, or how rows are written."""


def test_the_core_names_no_method() -> None:
    """Neither a method that ships nor what is its own; the full model alone is known, and named once."""
    names = {point.name for point in entry_points(group="varbench") if point.value.startswith("varbench_")}
    assert {"full_var", "variant", "code"} <= names
    words = "|".join(sorted(names - ENGLISH | {"progressive", "p05"}))
    selected, strings = "|".join(sorted(ENGLISH)), "|".join(sorted(ENGLISH - KINDS))
    method = re.compile(rf"(?<![-\w])(?i:{words})(?![-\w])|\brefiner\b|\b({selected})@|\"({strings})\"|`({strings})`")
    allowed = {'FULL = "full_var"', '"code": ", ".join(sorted({r.code_hash[:12] for r in records})),'}
    found = []
    for path in PACKAGE.rglob("*"):
        if "recipes" in path.relative_to(PACKAGE).parts:  # what was trained for a method is named after it
            continue
        if path.suffix not in (".py", ".j2", ".js", ".css", ".json", ".toml"):
            continue
        helps = path.parent.name == "commands" or path.name == "__main__.py"
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if method.search(line) and line.strip() not in allowed and not (helps and EXAMPLE.match(line)):
                found.append(f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_every_exception_from_the_types_is_explained() -> None:
    """No error is switched off for whole modules, and each line that mypy passes over says what and why."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    assert not {key for override in settings["overrides"] for key in override} - {"module", "ignore_missing_imports"}
    paths = [path for folder in (PACKAGE, *SHIPPED) for path in folder.rglob("*.py")]
    switched = [path for path in paths if re.search(r"^# mypy:", path.read_text(), flags=re.MULTILINE)]
    assert switched == [], "such a line switches off a kind of error for a whole module"
    passed_over = [line.strip() for path in paths for line in path.read_text().splitlines() if "type: ignore" in line]
    assert [line for line in passed_over if not re.search(r"# type: ignore\[[\w, -]+\]  # \w", line)] == []
    assert len(passed_over) <= 12


def test_modules_are_short() -> None:
    """None above 400 lines, and most below 250."""
    counts = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in counts.items() if count > 400} == {}
    assert sum(count < 250 for count in counts.values()) > 0.8 * len(counts)


def test_lines_can_be_read() -> None:
    """The formatter breaks code at 120 columns and leaves prose and tables that are marked; 140 are the most."""
    paths = [path for folder in (PACKAGE, *SHIPPED) for path in folder.rglob("*.py")]
    lines = [
        (path.name, number, line) for path in paths for number, line in enumerate(path.read_text().splitlines(), 1)
    ]
    assert [f"{name}:{number}" for name, number, line in lines if len(line) > 140] == []
