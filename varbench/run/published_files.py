"""Finds a protocol's files by the names that they are published under, and holds them against their published hashes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varbench.base.hashing import file_hash
from varbench.base.places import user_caches
from varbench.errors import UserError
from varbench.model.bundle import recipe_in
from varbench.plan import protocols
from varbench.plan.protocols import Protocol, PublishedFile
from varbench.record.options import Options
from varbench.spec import ModelSpec


def torch_cache() -> Path:
    """Where torch's hub keeps what it has downloaded."""
    return Path(os.environ.get("TORCH_HOME") or user_caches() / "torch") / "hub" / "checkpoints"


def under_protocol(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options with the settings and files of `--protocol`, where it is given; each file's hash is told.

    What is given beside it stays: a departure from the protocol, which records say.
    """
    if (name := given.get("protocol")) is None:
        for option in ("checkpoints", "other_files"):
            if given.get(option):
                flag = option.replace("_", "-")
                raise UserError(f"--{flag} belongs to --protocol NAME, as in --protocol {protocols.names()[0]}")
        return dict(given)
    known = protocols.protocol(name)
    if given.get("weights") == "random":
        raise UserError(
            f"--protocol {name} measures quality, which random weights have none of; leave one of the two out"
        )
    if "model" not in given:
        raise UserError(f"--protocol {name} needs --model, one of {', '.join(known.weights)}")
    settings = {
        option: value for option, value in known.settings.items() if not (given.get("quick") and option == "images")
    }
    wanted = _wanted(known, given)
    files = _found(known, wanted, given)
    for option, path in files.items():
        _check(wanted[option], Path(path), allowed=given.get("other_files", False))
    return {**settings, **given, **files}


def _wanted(known: Protocol, given: Mapping[str, Any]) -> dict[str, PublishedFile]:
    """The published files that are needed, by option: beside weights that were trained and packed, which have their tokenizer,
    neither the published checkpoint nor its tokenizer."""
    files = known.files_of(given["model"])
    if (recipe := recipe_in(given.get("weights"))) is None:
        return files
    _tell(
        f"{given['weights']}: trained weights of {recipe} with their tokenizer, in the place of the published checkpoint"
    )
    return {option: file for option, file in files.items() if option not in ("weights", "vae")}


def _found(known: Protocol, wanted: Mapping[str, PublishedFile], given: Mapping[str, Any]) -> dict[str, str]:
    """Where every file lies, by option; those that are nowhere are named together, with their sources."""
    places = _places(given.get("checkpoints"))
    found, lacking = {}, []
    for option, file in wanted.items():
        path = given[option] if option in given else _in(places, file)
        if path is None:
            lacking.append(f"{file.name} ({file.source}; or --{option} PATH)")
        else:
            found[option] = str(path)
    if lacking:
        there = f"; there are {', '.join(Path(path).name for path in found.values())}" if found else ""
        raise UserError(
            f"--protocol {known.name} lacks {len(lacking)} of {len(lacking) + len(found)} files: {', '.join(lacking)}. Looked "
            f"for in {' and '.join(map(str, places))}{there}"
        )
    return found


def companions(options: Options, further: Mapping[str, ModelSpec]) -> dict[str, str]:
    """Published weights of the further models that rows run on, of those that lie where the protocol's files do."""
    if options.protocol is None:
        return {}
    known, found = protocols.protocol(options.protocol), {}
    for part, wanted in further.items():
        file = known.weights_of(wanted)
        if file is not None and (path := _in(_places(options.checkpoints), file)):
            _check(file, path, allowed=options.other_files)
            found[part] = str(path.resolve())
    return found


def _places(checkpoints: str | None) -> list[Path]:
    return [*([] if checkpoints is None else [Path(checkpoints)]), torch_cache()]


def _in(places: list[Path], file: PublishedFile) -> Path | None:
    paths = (place / name for place in places for name in file.names)
    return next((path for path in paths if path.is_file()), None)


def _check(file: PublishedFile, path: Path, *, allowed: bool) -> None:
    """Says how a file's hash stands to the published one; another than that is refused unless it is allowed."""
    if file.sha256 is None:
        _tell(f"{path}: the published hash of {file.name} is not known, so it is not checked")
        return
    found = file_hash(path)
    if found == file.sha256:
        _tell(f"{path}: sha256 {found[:8]}…, as published")
    elif not file.irreplaceable and (allowed or not file.sure):
        why = "taken all the same, as --other-files says" if allowed else "the only source of that hash, so it is taken"
        _tell(f"warning: {path}: sha256 {found[:8]}…, and {file.sha256[:8]}… is stated for {file.name}; {why}")
    else:
        otherwise = (
            "; --other-files does not take another, since distances of another network are not FID"
            if file.irreplaceable
            else ", or take it all the same by --other-files"
        )
        raise UserError(
            f"{path} has the sha256 {found}, and {file.name} is published with {file.sha256}: fetch it again from "
            f"{file.source}{otherwise}"
        )


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
