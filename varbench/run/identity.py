"""What decides a result, by content: the program's own source, the plugins' with their data, and every file that is read."""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata
from pathlib import Path

import varbench
from varbench.base.hashing import files_hash
from varbench.run.messages import ResolvedPlugin

SHOWING = ("show", "check", "commands")
"""Rooms that show what was measured, or check plugins: they decide no figure."""


@functools.cache
def code_hash() -> str:
    """Hash of varbench's own source, by path and content."""
    return source_hash(Path(str(varbench.__file__)).parent)


@functools.cache
def measuring_hash() -> str:
    """As `code_hash`, without what cannot change a figure: editing the page or the help makes no record out of date."""
    return source_hash(Path(str(varbench.__file__)).parent, without=SHOWING)


def source_hash(place: Path, *, without: tuple[str, ...] = ()) -> str:
    """Hash of all modules below a package's folder."""
    files = [file for file in sorted(place.rglob("*.py")) if file.relative_to(place).parts[0] not in without]
    return files_hash((file.relative_to(place).as_posix(), file) for file in files)


def plugin_hash(plugin: ResolvedPlugin) -> str | None:
    """Hash of all files that a plugin consists of, data included; None if it has none."""
    files = {file for place in plugin.files for file in _below(Path(place))}
    if plugin.distribution not in ("varbench", "no distribution") and not any(Path(p).is_dir() for p in plugin.files):
        files |= set(_of_distribution(plugin.distribution))
    if not files:
        return None
    root = Path(plugin.files[0]) if Path(plugin.files[0]).is_dir() else Path(plugin.files[0]).parent
    named = sorted((_relative(file, root), file) for file in files)
    return files_hash(named)


def _below(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place] if place.is_file() else []
    return [file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _of_distribution(name: str) -> list[Path]:
    """Files that were installed with it, less what installing itself writes, as where an editable one lies."""
    try:
        listed = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = [Path(str(file.locate())) for file in listed if not file.parts[0].endswith(".dist-info")]
    return [file for file in found if file.is_file() and file.suffix != ".pyc" and "__editable__" not in file.name]


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def torch_version() -> str:
    """torch's version, without importing torch."""
    if importlib.util.find_spec("torch") is None:
        return "none"
    return metadata.version("torch")
