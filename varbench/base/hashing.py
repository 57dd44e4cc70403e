"""What something is by its content, never by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def digest(parts: Iterable[str | bytes]) -> str:
    """Of lines, in UTF-8 where they are bytes already."""
    found = hashlib.sha256()
    for number, part in enumerate(parts):
        if number:
            found.update(b"\n")
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def json_digest(content: Any) -> str:
    """Of what JSON can write, whatever the order of its keys."""
    return digest([json.dumps(content, sort_keys=True)])


def array_hash(array: NDArray[np.generic]) -> str:
    """sha256 of an array's bytes, row by row: how images and tokens are named in records."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes: how weights are named in records."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(named: Iterable[tuple[str, Path]]) -> str:
    """Of several files, each under a name that does not depend on where they lie."""
    return digest(f"{name} {file_hash(file)}" for name, file in named)


def path_hash(path: str | Path) -> str:
    """Of a file, or of all files below a folder by their paths in it; of what is not there, a word."""
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return files_hash((file.relative_to(place).as_posix(), file) for file in files)
    return file_hash(place) if place.is_file() else "absent"
