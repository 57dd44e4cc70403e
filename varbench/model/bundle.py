"""Trained weights of a recipe as one file: tokenizer, models and what is told of their training, to be handed on. No torch.

A bundle is a zip archive, not compressed, with the weight files as they are and a list of their hashes.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varbench.base.hashing import file_hash, json_digest
from varbench.base.places import cache_folder
from varbench.base.whole_files import whole_file
from varbench.errors import CheckpointError
from varbench.spec import ModelSpec

MANIFEST = "varbench.json"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    recipe: str
    """As in `method@recipe`."""
    model: ModelSpec
    files: Mapping[str, Path]
    """By part: `vae`, `main`, and what else the recipe has."""
    record: Mapping[str, Any]
    """How they were trained."""


def write_bundle(path: Path, *, recipe: str, model: ModelSpec, files: Mapping[str, Path], record: Any) -> None:
    told = {
        "bundle": 1,
        "recipe": recipe,
        "model": model.to_json(),
        "files": {part: file_hash(file) for part, file in files.items()},
        "record": record,
    }
    with whole_file(path) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MANIFEST, json.dumps(told))
        for part, file in files.items():
            archive.write(file, _member(part))


def recipe_in(path: str | Path | None) -> str | None:
    """The recipe that a bundle is of; None where the file is none."""
    told = None if path is None else _manifest(Path(path))
    return None if told is None else str(told["recipe"])


def sizes_in(path: str | Path) -> ModelSpec | None:
    """The sizes of a bundle's model; None where the file is none."""
    told = _manifest(Path(path))
    return None if told is None else ModelSpec.from_json(told["model"])


def opened(path: str | Path) -> Bundle | None:
    """A bundle, unpacked into the cache folder; None where the file is none. What is torn is refused."""
    told = _manifest(Path(path))
    if told is None:
        return None
    folder = cache_folder("bundles") / json_digest(told)[:32]
    files = {part: folder / _member(part) for part in told["files"]}
    with zipfile.ZipFile(path) as archive:
        for part, file in files.items():
            if not file.is_file():
                _unpack(archive, part, file, sha256=told["files"][part], bundle=path)
    return Bundle(recipe=told["recipe"], model=ModelSpec.from_json(told["model"]), files=files, record=told["record"])


def _unpack(archive: zipfile.ZipFile, part: str, file: Path, *, sha256: str, bundle: str | Path) -> None:
    try:
        with archive.open(_member(part)) as packed, whole_file(file) as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        found = file_hash(file)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{bundle} is torn: {part} cannot be read from it ({error}). Copy it again.") from error
    if found != sha256:
        file.unlink()
        raise CheckpointError(
            f"{bundle}: its {part} has the sha256 {found[:12]}, and {sha256[:12]} was packed. Copy it again."
        )


def _member(part: str) -> str:
    return f"{part}.safetensors"


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if MANIFEST not in archive.namelist():
                return None
            told: dict[str, Any] = json.loads(archive.read(MANIFEST))
    except (OSError, zipfile.BadZipFile):
        return None
    if told.get("bundle") != 1:
        raise CheckpointError(
            f"{path} is a bundle of version {told.get('bundle')}, and this varbench reads 1: upgrade it"
        )
    return told
