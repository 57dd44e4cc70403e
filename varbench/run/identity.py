"""What decides a result, by content: the program's own source, the plugins' with their data, and every file that is read."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import varbench
from varbench.base.hashing import digest, files_hash
from varbench.run.messages import ResolvedPlugin

SHOWING = ("show", "check", "commands")
"""Rooms that show what was measured, or check plugins: they decide no figure."""
BESIDE_CODE = ("build", "dist", "docs", "reports", "tests", "varbench-runs")
"""Folders at the top of a project that hold nothing its code reads: what was built, told, tested or measured."""
LARGE = 2**28
"""Bytes above which a file of a project that is no part of the plugin's package is known by its size: to read it all whenever
a process starts takes longer than the process."""


@functools.cache
def code_hash() -> str:
    """Hash of varbench's own source, by path and content."""
    return source_hash(Path(str(varbench.__file__)).parent)


@functools.cache
def measuring_hash() -> str:
    """As `code_hash`, without what cannot change a figure: editing the page or the help makes no record out of date."""
    return source_hash(Path(str(varbench.__file__)).parent, without=SHOWING)


def source_hash(place: Path, *, without: tuple[str, ...] = ()) -> str:
    """Hash of all code below a package's folder."""
    code = [file for file in sorted(place.rglob("*")) if file.suffix in (".py", ".c")]
    files = [file for file in code if file.relative_to(place).parts[0] not in without]
    return files_hash((file.relative_to(place).as_posix(), file) for file in files)


def plugin_hash(plugin: ResolvedPlugin) -> str | None:
    """Hash of all files that a plugin consists of, data included; None if it has none."""
    files = {file for place in plugin.files for file in _below(Path(place))}
    first = Path(next(iter(plugin.files), ""))
    root = first if first.is_dir() else first.parent
    large: set[Path] = set()
    if plugin.distribution not in ("varbench", "no distribution"):
        if (project := _project(plugin.distribution)) is not None:
            root, beside = project, set(_of_project(project)) - files
            large = {file for file in beside if file.stat().st_size > LARGE}
            files |= beside - large
        else:
            root, files = first.parent, files | set(_of_distribution(plugin.distribution))
    if not files:
        return None
    hashed = files_hash(sorted((_relative(file, root), file) for file in files))
    sizes = sorted(f"{_relative(file, root)} {file.stat().st_size}" for file in large)
    return digest([hashed, *sizes]) if sizes else hashed


def _project(distribution: str) -> Path | None:
    """The folder that an editable installation is of: its code and what it reads lie there, and none of it is listed."""
    try:
        told = json.loads(metadata.distribution(distribution).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    if not told.get("dir_info", {}).get("editable"):
        return None
    folder = Path(url2pathname(urlsplit(told["url"]).path))
    return folder if folder.is_dir() else None


def _of_project(project: Path) -> Iterator[Path]:
    """Files of a project that may decide what its code does. What is hidden, an environment, or the folder of a run is none."""
    for place, folders, files in os.walk(project):
        here = Path(place)
        top = BESIDE_CODE if here == project else ()
        folders[:] = [name for name in folders if name not in top and not _is_aside(here / name)]
        yield from (here / name for name in files if not name.startswith(".") and (here / name).is_file())


def _is_aside(folder: Path) -> bool:
    written = folder.name.startswith(".") or folder.name == "__pycache__" or folder.name.endswith(".egg-info")
    return written or any((folder / mark).exists() for mark in ("pyvenv.cfg", ".lock"))


def _below(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place] if place.is_file() else []
    return [file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _of_distribution(name: str) -> list[Path]:
    """Files that were installed with it, less what installing itself writes: where an editable one lies, and commands, which
    name the interpreter."""
    try:
        listed = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return []
    own = [file for file in listed if not (file.parts[0].endswith(".dist-info") or _is_command(file.parts))]
    found = [Path(str(file.locate())) for file in own]
    return [file for file in found if file.is_file() and file.suffix != ".pyc" and "__editable__" not in file.name]


def _is_command(parts: tuple[str, ...]) -> bool:
    return parts[0] == ".." and "bin" in parts


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def torch_version() -> str:
    """torch's version, without importing torch."""
    if importlib.util.find_spec("torch") is None:
        return "none"
    return metadata.version("torch")
