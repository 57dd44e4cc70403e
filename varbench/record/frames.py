"""Records as flat tables, one line each: for CSV, Parquet and notebooks."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
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
_RAW = ("rounds", "beside", "swings")
"""Samples of a timing column, and splits of a score: a table has what they come to."""

Shared = dict[tuple[str, int], dict[str, Any]]
"""Sections as they were flattened, by their name and identity."""

Line = dict[str, Any]
"""What a table has of a record: strings, numbers and truth values by dotted path."""


def frame_of(encoded: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The lines of records as `all_to_json` gives them, for notebooks."""
    import pandas as pd

    return pd.DataFrame(lines_of(encoded))


def lines_of(encoded: Iterable[dict[str, Any]]) -> list[Line]:
    """One line per record, one column per key by its dotted path; scores and timing columns by name, lists as JSON."""
    together = list(encoded)  # they stay, so that nothing else goes by the identities of what they share
    shared: Shared = {}
    return [_flat(data, shared) for data in together]


def _flat(data: dict[str, Any], shared: Shared) -> Line:
    """`quality.FD-shapes.value` and `timing.throughput.transformer.median` are by name. `shared` goes with records one after the
    other: a section that several have is flattened once."""
    flat: Line = {}
    for name, value in data.items():
        if not isinstance(value, dict):
            _flatten_into(flat, name, value)
            continue
        if (name, id(value)) not in shared:
            _flatten_into(shared.setdefault((name, id(value)), {}), name, value)
            for key, part in _named_parts(name, value):
                _flatten_into(shared[name, id(value)], key, part)
        flat |= shared[name, id(value)]
    return flat


def _named_parts(name: str, section: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if name == "quality":
        yield from ((f"quality.{score['name']}", score) for score in section["scores"])
    if name == "timing":
        yield from ((f"timing.{one['regime']}.{one['column']}", one) for one in section["columns"])


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """What a line lacks is empty."""
    text = io.StringIO(newline="")
    columns = _columns_of(lines)
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(map(line.get, columns) for line in lines)
    write_whole(path, text.getvalue().encode())


def write_parquet(lines: Sequence[Line], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {name: _alike([line.get(name) for line in lines]) for name in _columns_of(lines)}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    write_whole(path, buffer.getvalue())


def _columns_of(lines: Sequence[Line]) -> list[str]:
    """In the order in which they first occur."""
    return list(dict.fromkeys(itertools.chain.from_iterable(lines)))


def _alike(values: list[Any]) -> list[Any]:
    """Of one type: where plugins' parameters differ in it, each is its JSON."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) < 2 or kinds == {int, float}:
        return values
    return [None if value is None else json.dumps(value) for value in values]


def _flatten_into(flat: dict[str, Any], path: str, value: Any) -> None:
    if path in _LEFT_OUT:
        return
    if isinstance(value, dict) and path != "missing":
        for name, item in value.items():
            if name not in _RAW:
                _flatten_into(flat, f"{path}.{name}", item)
    elif isinstance(value, (list, dict)):
        flat[path] = msgspec.json.encode(value).decode()
    else:
        flat[path] = value
