"""Records on disk: one JSON file each, written whole or not at all, read one by one so that a torn file costs one row."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from varbench.base.whole_files import write_whole
from varbench.errors import UserError
from varbench.record import schema
from varbench.record.schema import SCHEMA_VERSION, Record

# From schema version to a function that turns a file of that version into one of the next. Keys that are merely
# new need none: a missing key that may be null reads as null.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class RecordError(UserError):
    """A file is not a readable record."""


class NewerSchemaError(RecordError):
    """A record was written by a newer varbench."""


class OtherFileError(RecordError):
    """Well-formed JSON that never was a record."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a set of folders held: the records, and one line for each file that could not be read."""

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    paths: tuple[Path, ...]  # the file of each record, in the same order


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON values; a NaN or an infinity is refused by its path, for it should be null with a reason."""
    encoded = _encode(record, "record")
    assert isinstance(encoded, dict)
    return encoded


def from_json(data: dict[str, Any]) -> Record:
    """The record of a decoded JSON file, of this schema version or an older one."""
    version = data.get("schema")
    if not isinstance(version, int):
        raise OtherFileError("not a varbench record: it has no schema version")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"written with record schema {version}, this varbench reads up to {SCHEMA_VERSION}: upgrade varbench"
        )
    for older in range(version, SCHEMA_VERSION):
        data = UPGRADES[older](data) if older in UPGRADES else data
    record = _decode(Record, {**data, "schema": SCHEMA_VERSION}, "record")
    assert isinstance(record, Record)
    return record


def record_path(record: Record, folder: Path) -> Path:
    """Where the record of a row lies: its name in letters that every file system takes, and a hash of the exact row."""
    asked = dataclasses.replace(record.protocol, row_order=(), shared_child=False, kernel=None)  # the rest is found out
    identity = json.dumps([record.row.row, record.row.study, record.model.preset, _encode(asked, "protocol")])
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", record.row.row).strip("_")[:60]
    return folder / f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}.json"


def write_record(record: Record, folder: Path, *, replace: bool = False) -> Path:
    """Writes the record into a folder, whole or not at all. An earlier record of the row stays unless `replace`."""
    path = record_path(record, folder)
    if path.exists() and not replace:
        raise RecordError(f"{path} exists: resume the run with --resume, or choose another --out")
    write_whole(path, json.dumps(to_json(record), allow_nan=False).encode() + b"\n")
    return path


def read_record(path: Path) -> Record:
    """One record; RecordError names the file and says what is wrong with it."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: torn or not JSON ({error}); run the row again with --resume") from error
    if not isinstance(data, dict):
        raise OtherFileError(f"{path}: not a varbench record: it holds a {type(data).__name__}")
    try:
        return from_json(data)
    except RecordError as error:
        raise type(error)(f"{path}: {error}") from error


def load_records(places: Iterable[Path]) -> Loaded:
    """All records in folders and their sub-folders, or in single files, in a stable order. A bad file is a problem, not an end."""
    records, problems, paths = [], [], []
    for place in places:
        if not place.exists():
            raise RecordError(f"{place}: no such file or folder; name a run folder or a record")
        for path in sorted(place.rglob("[!.]*.json")) if place.is_dir() else [place]:
            try:
                records.append(_with_samples(read_record(path), path.parent))
                paths.append(path)
            except (RecordError, OSError) as error:
                if not (place.is_dir() and isinstance(error, OtherFileError)):  # run folders hold other JSON too
                    problems.append(str(error))
    return Loaded(records=tuple(records), problems=tuple(problems), paths=tuple(paths))


def _with_samples(record: Record, folder: Path) -> Record:
    """The record with its grid of images inside: what is made from records then needs nothing else."""
    samples = record.samples
    if samples is None or samples.path is None or samples.png is not None:
        return record
    try:
        png = base64.b64encode((folder / samples.path).read_bytes()).decode()
    except OSError as error:
        lost = {**record.missing, "samples.png": f"{samples.path} cannot be read: {error.strerror}"}
        return dataclasses.replace(record, missing=lost)
    return dataclasses.replace(record, samples=dataclasses.replace(samples, png=png, path=None))


def _encode(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _encode(getattr(value, field.name), f"{path}.{field.name}") for field in fields}
    if isinstance(value, dict):
        return {str(name): _encode(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{path} is {value}: a number that is not there is null, with its reason in `missing`")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise RecordError(f"{path} holds a {type(value).__name__}, which JSON cannot hold")


@functools.cache
def _fields_of(kind: type) -> dict[str, tuple[Any, bool]]:
    """Type of each key, and whether a file may lack it."""
    hints = typing.get_type_hints(kind, vars(schema))
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is not missing or field.default_factory is not missing)
        for field in dataclasses.fields(kind)
    }


def _decode(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        inner = next(item for item in typing.get_args(kind) if item is not type(None))
        return None if value is None else _decode(inner, value, path)
    if kind is Any:
        return value
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, path)
        inner = typing.get_args(kind)[0]
        return tuple(_decode(inner, item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, path)
        inner = typing.get_args(kind)[1]
        return {name: _decode(inner, item, f"{path}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        _expect(isinstance(value, dict), "an object", value, path)
        known = _fields_of(kind)
        if unknown := value.keys() - known.keys():
            raise RecordError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
        if lost := {name for name, (_, optional) in known.items() if not optional} - value.keys():
            raise RecordError(f"{path} lacks keys: {', '.join(sorted(lost))}")
        return kind(**{name: _decode(known[name][0], item, f"{path}.{name}") for name, item in value.items()})
    if issubclass(kind, StrEnum):
        _expect(value in list(kind), f"one of {', '.join(kind)}", value, path)
        return kind(value)
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, path)
        return float(value)
    _expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), kind.__name__, value, path)
    return value


def _expect(holds: bool, what: str, value: Any, path: str) -> None:
    if not holds:
        raise RecordError(f"{path} should be {what}, and is {str(value)[:60]!r}")
