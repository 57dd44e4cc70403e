"""Records as flat tables, one line each: for CSV, Parquet and notebooks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from varbench.base.whole_files import write_whole

if TYPE_CHECKING:
    import pandas as pd

RAW_OF_TIMING = ("calls", "drawn")
"""What is there for each timed call, beside the columns' own delays."""
# Long and nested; they stay in the JSON files, and of most the frame has what is computed from them.
_LEFT_OUT = (
    "plan.steps", "samples.png", "traceback", "stderr_tail", "training.losses", "training.evaluations", "quality.scores",
    "timing.columns", *(f"timing.{name}" for name in RAW_OF_TIMING),
)  # fmt: skip


Shared = dict[tuple[str, int], dict[str, Any]]
"""Sections as they were flattened, by their name and identity."""


def frame_of(encoded: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One line per record as `to_json` gives it, one column per key by its dotted path; scores and timing columns by name,
    lists as JSON."""
    import pandas as pd

    together = list(encoded)  # they stay, so that nothing else goes by the identities of what they share
    shared: Shared = {}
    return pd.DataFrame([flatten(data, shared) for data in together])


def flatten(data: dict[str, Any], shared: Shared) -> dict[str, Any]:
    """Keys by dotted path. `quality.FD-shapes.value` and `timing.throughput.transformer.median` are by name. `shared` goes with
    records one after the other: a section that several have is flattened once."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if not isinstance(value, dict):
            _flatten_into(flat, name, value)
            continue
        if (name, id(value)) not in shared:
            _flatten_into(shared.setdefault((name, id(value)), {}), name, value)
        flat |= shared[name, id(value)]
    for score in data["quality"]["scores"] if data["quality"] else ():
        _flatten_into(flat, f"quality.{score['name']}", score)
    for column in data["timing"]["columns"] if data["timing"] else ():
        _flatten_into(flat, f"timing.{column['regime']}.{column['column']}", column)
    return flat


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    write_whole(path, frame.to_csv(index=False).encode())


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame = frame.copy()
    for name in frame.columns:
        if (
            frame[name].dtype == object and len({type(value) for value in frame[name].dropna()}) > 1
        ):  # plugins' parameters may differ in type
            frame[name] = frame[name].map(json.dumps, na_action="ignore")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_whole(path, buffer.getvalue())


def _flatten_into(flat: dict[str, Any], path: str, value: Any) -> None:
    if path in _LEFT_OUT:
        return
    if isinstance(value, dict) and path != "missing":
        for name, item in value.items():
            _flatten_into(flat, f"{path}.{name}", item)
    elif isinstance(value, (list, dict)):
        flat[path] = msgspec.json.encode(value).decode()
    else:
        flat[path] = value
