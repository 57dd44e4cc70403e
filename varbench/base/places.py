"""Where varbench keeps what it can make again."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "weights": "recipes that were trained here",
    "bundles": "recipes that came in one file, unpacked",
    "calibrations": "what offline passes of methods found",
    "hardware": "what `varbench env --calibrate` measured",
    "tokens": "training images as tokens",
    "examples": "what full models made for others to learn from",
    "images": "training images",
    "features": "features of reference images",
    "full-images": "images of the full model, to hold others against",
    "runs": "measured parts of earlier runs",
    "scripts": "the chart library, as pages carry it",
    "kernels": "C code of the engine, compiled for this processor",
}


def user_caches() -> Path:
    """Where programs keep what they can have again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache_root() -> Path:
    return user_caches() / "varbench"


def cache_folder(kind: str) -> Path:
    """The folder of one of `KINDS`; it need not be there."""
    assert kind in KINDS, kind
    return cache_root() / kind


IN_MEMORY = Path("/dev/shm")
FEW = 256 * 2**20
"""Bytes of short-lived files that any machine has memory for."""


def folder_for_a_moment(size: int) -> Path | None:
    """Where short-lived files of this size lie: in memory, if they are few and that has room for four times as much, since a disk
    may take half a millisecond to begin a file. None is where such files usually are."""
    with contextlib.suppress(OSError):
        if size <= FEW and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free >= 4 * size:
            return IN_MEMORY
    return None


def full_images(inputs: str) -> Path:
    """Where images of the full model lie that was made from these inputs."""
    return cache_folder("full-images") / f"{inputs}.npz"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file or folder of the cache, which goes as a whole."""

    path: Path
    size: int
    changed: float
    """When anything of it was last written, in seconds since 1970."""


def kept(kind: str) -> list[Kept]:
    """What lies in a kind's folder."""
    folder = cache_folder(kind)
    return [looked_at(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def looked_at(path: Path) -> Kept:
    """All that lies there; files that go meanwhile, as partial ones do, are not there."""
    size, changed = 0, 0.0
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            found = file.stat()
            size += found.st_size if file.is_file() else 0
            changed = max(changed, found.st_mtime)
    return Kept(path=path, size=size, changed=changed)
