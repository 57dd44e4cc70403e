"""Records on disk: one JSON file each, written whole or not at all, read one by one so that a torn file costs one row."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from varbench.base.by_identity import once
from varbench.base.hashing import digest
from varbench.base.whole_files import write_whole
from varbench.record.coding import Decodings, RecordError, TextParts, decode_parts, encode, encode_again
from varbench.record.option_forms import settings
from varbench.record.options import Options
from varbench.record.origin import RowIdentity
from varbench.record.schema import SCHEMA_VERSION, Record
from varbench.record.upgrades import UPGRADES

_PARTS = msgspec.json.Decoder(TextParts)
_SOME = msgspec.json.Decoder(list[msgspec.Raw])


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
    encoded = encode(record, "record")
    assert isinstance(encoded, dict)
    return encoded


def all_to_json(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Each as `to_json` gives it, of records that were written or read; what they share is one object in all of them, and must not be
    changed."""
    return encode_again(records)


class Encoded(NamedTuple):
    """Records as JSON."""

    data: list[dict[str, Any]]
    """As `all_to_json` gives them."""
    texts: list[bytes]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Encoded:
        data = all_to_json(records)
        return cls(data, texts_of(data))


def texts_of(encoded: Sequence[dict[str, Any]]) -> list[bytes]:
    """Records as JSON gives them, as text; the text of a section that is one object in several is made once."""

    def section(part: Any) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(part))

    shared = once(section)
    made = (
        {name: section(part) if name == "samples" else shared(part) for name, part in data.items()} for data in encoded
    )
    return list(map(msgspec.json.encode, made))


def all_from_text(text: bytes) -> list[Record]:
    """Of a list of records. Parts that are alike, as the plans of a row's repeats, are one object, and must not be changed."""
    alike: Decodings = {}
    return [from_text(record, alike=alike) for record in _SOME.decode(text)]


def from_text(text: bytes | msgspec.Raw, *, alike: Decodings | None = None) -> Record:
    """The record of a JSON text, of this schema version or an older one."""
    try:
        parts = _PARTS.decode(text)
    except msgspec.ValidationError as error:
        raise OtherFileError(f"not a varbench record ({error})") from error
    version = msgspec.json.decode(parts["schema"]) if "schema" in parts else None
    if type(version) is not int:
        raise OtherFileError("not a varbench record: it has no schema version")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"written with record schema {version}, this varbench reads up to {SCHEMA_VERSION}: upgrade varbench"
        )
    if version < SCHEMA_VERSION:
        data = msgspec.json.decode(text)
        try:
            for older in range(version, SCHEMA_VERSION):
                data = UPGRADES[older](data) if older in UPGRADES else data
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"not a record of schema {version}, as it says: {error!r}") from error
        parts = {name: msgspec.Raw(msgspec.json.encode(part)) for name, part in data.items()}
        parts["schema"] = msgspec.Raw(str(SCHEMA_VERSION))
    return decode_parts(Record, parts, "record", alike={} if alike is None else alike)


def record_path(row: RowIdentity, options: Options, folder: Path) -> Path:
    """Where the record of a row lies: its name in letters that every file system takes, and a hash of the exact row."""
    identity = json.dumps([row.row, row.study, settings(options)])
    return folder / f"{_letters(row.row)}-{digest([identity])[:10]}.json"


def row_slug(row: str) -> str:
    """A row's name for a file or folder of its own."""
    return f"{_letters(row)}-{digest([row])[:6]}"


def _letters(row: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", row).strip("_")[:60]


def write_record(record: Record, folder: Path, *, replace: bool = False) -> Path:
    """Writes the record into a folder, whole or not at all. An earlier record of the row stays unless `replace`."""
    path = record_path(record.row, record.protocol, folder)
    if path.exists() and not replace:
        raise RecordError(f"{path} exists: resume the run with --resume, or choose another --out")
    write_whole(path, msgspec.json.encode(to_json(record)) + b"\n")
    return path


def read_record(path: Path, *, alike: Decodings | None = None) -> Record:
    """One record; RecordError names the file and says what is wrong with it."""
    try:
        return from_text(path.read_bytes(), alike=alike)
    except RecordError as error:
        raise type(error)(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: torn or not JSON ({error}); run the row again with --resume") from error


def load_records(places: Iterable[Path]) -> Loaded:
    """All records in folders and their sub-folders, or in single files, in a stable order. A bad file is a problem, not an end.
    Parts that records have alike are one object, and must not be changed."""
    records, problems, paths, copies = [], [], [], []
    of_row: dict[tuple[str, str], list[Record]] = {}
    alike: Decodings = {}
    for place in places:
        if not place.exists():
            raise RecordError(f"{place}: no such file or folder; name a run folder or a record")
        for path in sorted(place.rglob("[!.]*.json")) if place.is_dir() else [place]:
            try:
                record = _with_samples(read_record(path, alike=alike), path.parent)
            except (RecordError, OSError) as error:
                if not (place.is_dir() and isinstance(error, OtherFileError)):  # run folders hold other JSON too
                    problems.append(str(error))
                continue
            known = of_row.setdefault((record.run, path.name), [])
            if record in known:
                copies.append(path)
                continue
            known.append(record)
            records.append(record)
            paths.append(path)
    if copies:
        problems.append(f"{len(copies)} records are copies of others, and count once: {copies[0]} is one")
    return Loaded(records=tuple(_told_apart(records, paths)), problems=tuple(problems), paths=tuple(paths))


def _told_apart(records: Sequence[Record], paths: Sequence[Path]) -> Iterator[Record]:
    """Runs that have one name in different folders, and rows in common, get numbers: what is made of their records would take
    them for one run."""
    first: dict[tuple[str, str], Path] = {}
    names: dict[Path, str] = {}
    for record, path in zip(records, paths, strict=True):
        if path.parent not in names and first.setdefault((record.run, path.name), path.parent) != path.parent:
            names[path.parent] = (
                f"{record.run} ({2 + sum(name.startswith(f'{record.run} (') for name in names.values())})"
            )
    for record, path in zip(records, paths, strict=True):
        name = names.get(path.parent)
        yield record if name is None else dataclasses.replace(record, run=name)


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
