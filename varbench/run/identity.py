"""What decides a result, as hashes: the program's own source, the plugins', and every file that is read."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
from importlib import metadata
from pathlib import Path
from typing import Any

import varbench
from varbench.base.hashing import digest
from varbench.record import PluginVersion
from varbench.rows.grammar import Row

SHOWING = ("show", "commands", "check", "__main__.py")
"""Parts of the package that only show what was measured, or check plugins."""


@functools.cache
def code_hash() -> str:
    """Hash of varbench's own source, by path and content."""
    return source_hash(Path(str(varbench.__file__)).parent)


@functools.cache
def measuring_hash() -> str:
    """As `code_hash`, of what decides a figure: a change of the report or of the help makes no record old."""
    return source_hash(Path(str(varbench.__file__)).parent, without=SHOWING)


@functools.cache
def source_hash(place: Path, *, without: tuple[str, ...] = ()) -> str:
    """Hash of a module's source, or of all modules below a package's folder."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    files = [file for file in files if file.relative_to(place).parts[:1] not in {(name,) for name in without}]
    root = place if place.is_dir() else place.parent
    return digest(f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)


def plugin_versions(row: Row, modules: dict[str, Any]) -> tuple[PluginVersion, ...]:
    """The row's plugins; `modules` are their loaded modules or objects by name."""
    return tuple(
        PluginVersion(
            name=info.name,
            distribution=info.distribution,
            version=info.version,
            code_hash=_plugin_hash(modules.get(info.name)),
        )
        for info in row.plugins
    )


def _plugin_hash(plugin: Any) -> str | None:
    """Of the package or module that the plugin lives in."""
    try:
        file = Path(inspect.getfile(plugin if inspect.ismodule(plugin) else type(plugin)))
    except TypeError:
        return None
    if not file.is_file():
        return None
    return source_hash(file.parent if file.name == "__init__.py" else file)


def torch_version() -> str:
    """Without importing it."""
    if importlib.util.find_spec("torch") is None:
        return "none"
    return metadata.version("torch")
