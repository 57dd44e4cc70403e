"""Records as flat tables, one line each: for CSV, Parquet and notebooks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench.records.files import to_json, write_atomic
from varbench.records.schema import Record

if TYPE_CHECKING:
    import pandas as pd

# Long and nested; they stay in the JSON files, and the frame has what is computed from them.
_LEFT_OUT = ("plan.steps", "samples.png", "traceback", "stderr_tail", "training.losses", "training.evaluations")


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One line per record, one column per key by its dotted path; scores and timing columns by name, lists as JSON."""
    import pandas as pd

    return pd.DataFrame([flatten(record) for record in records])


def flatten(record: Record) -> dict[str, Any]:
    """The record's keys by dotted path. `quality.FD-shapes.value` and `timing.throughput.transformer.median` are by name."""
    data = to_json(record)
    named: dict[str, Any] = {}
    if record.quality is not None:
        for score in data["quality"].pop("scores"):
            named[f"quality.{score.pop('name')}"] = score
    if record.timing is not None:
        for column in data["timing"].pop("columns"):
            named[f"timing.{column.pop('regime')}.{column.pop('column')}"] = column
    flat: dict[str, Any] = {}
    for name, value in (*data.items(), *named.items()):
        _flatten_into(flat, name, value)
    return flat


def write_csv(records: Iterable[Record], path: Path) -> None:
    write_atomic(path, to_frame(records).to_csv(index=False).encode())


def write_parquet(records: Iterable[Record], path: Path) -> None:
    frame = to_frame(records)
    for name in frame.select_dtypes("object"):
        if len({type(value) for value in frame[name].dropna()}) > 1:  # plugins' parameters may differ in type
            frame[name] = frame[name].map(json.dumps, na_action="ignore")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomic(path, buffer.getvalue())


def _flatten_into(flat: dict[str, Any], path: str, value: Any) -> None:
    if path in _LEFT_OUT:
        return
    if isinstance(value, dict) and path != "missing":
        for name, item in value.items():
            _flatten_into(flat, f"{path}.{name}", item)
    elif isinstance(value, (list, dict)):
        flat[path] = json.dumps(value)
    else:
        flat[path] = value
