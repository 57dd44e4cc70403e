"""What a resumed run finds in its folder: records that still hold, that are out of date, or that have other settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from varbench.base.whole_files import lay_there
from varbench.record import Record, RecordError, Status, read_record, record_path
from varbench.record.option_forms import settings
from varbench.run.prepare import Run


def complete_records(run: Run, out: Path, *, own: bool = False) -> dict[str, Record]:
    """Records of this run's rows that lay there before it began, complete and made from the same inputs; with `own` also
    those that it wrote. A row that was timed without the full model beside it, as where that crashed, is measured again."""
    return {
        name: record
        for name, path, record in _complete(run, out)
        if record.inputs_hash == run.rows[name].inputs
        and (own or (lay_there(path, before=run.began) and _has_neighbours(record)))
    }


def _has_neighbours(record: Record) -> bool:
    return record.timing is None or all(column.beside is not None for column in record.timing.columns)


def set_aside_outdated(run: Run, out: Path) -> tuple[str, ...]:
    """Rows whose complete records were made from other inputs. Their files are renamed, since they are measured again."""
    names = []
    for name, path, record in _complete(run, out):
        if record.inputs_hash != run.rows[name].inputs:
            path.replace(path.with_name(f"{path.stem}.{(record.inputs_hash or 'unknown')[:8]}.json.old"))
            names.append(name)
    return tuple(names)


def other_settings(run: Run, out: Path, *, besides: Sequence[dict[str, Any]] = ()) -> dict[str, tuple[Any, Any]]:
    """Settings in which records of the same rows differ from what is asked for now: theirs, and now's. Some, `besides`, are
    asked for too."""
    differ: dict[str, tuple[Any, Any]] = {}
    for path in sorted(out.glob("[!.]*.json")):
        record = _read(path)
        if record is None or record.row.row not in run.rows or path == _place(run, record.row.row, out):
            continue
        theirs, ours = settings(record.protocol), settings(run.options)
        if theirs in besides:
            continue
        differ |= {name: (theirs[name], ours[name]) for name in ours if theirs[name] != ours[name]}
    return differ


def _complete(run: Run, out: Path) -> Iterator[tuple[str, Path, Record]]:
    for name in run.rows:
        path = _place(run, name, out)
        record = _read(path)
        if record is not None and record.status is Status.COMPLETE:
            yield name, path, record


def _place(run: Run, name: str, out: Path) -> Path:
    return record_path(run.rows[name].identity, run.options, out)


def _read(path: Path) -> Record | None:
    """The record; None if there is none or it cannot be read, and the row is measured again."""
    try:
        return read_record(path)
    except (OSError, RecordError):
        return None
