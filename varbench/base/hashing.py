"""What something is by its content, never by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes: how weights are named in records."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_hash(path: str | Path) -> str:
    """Of a file, or of all files below a folder by their paths in it; of what is not there, a word."""
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return digest(f"{file.relative_to(place).as_posix()} {file_hash(file)}" for file in files)
    return file_hash(place) if place.is_file() else "absent"
