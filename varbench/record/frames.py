"""Records as flat tables, one line each: for CSV, Parquet and notebooks."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from varbench.base.by_identity import once
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

MOST_WHOLE = 2**63 - 1
"""That a column of whole numbers holds."""

Line = dict[str, Any]
"""What a table has of a record: strings, numbers and truth values by dotted path."""


def frame_of(encoded: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The lines of records as `all_to_json` gives them, for notebooks."""
    import pandas as pd

    return pd.DataFrame(lines_of(encoded))


def lines_of(encoded: Iterable[dict[str, Any]]) -> list[Line]:
    """One line per record, one column per key by its dotted path; scores and timing columns by name, lists as JSON."""
    lines: list[Line] = []
    flat: dict[str, Callable[[Any], Line]] = {}
    for data in encoded:
        line: Line = {}
        for name, value in data.items():
            if name not in flat:
                flat[name] = once(functools.partial(_flat, name))  # what several records share
            line |= flat[name](value)
        lines.append(line)
    return lines


def _flat(name: str, section: Any) -> Line:
    """`quality.FD-shapes.value` and `timing.throughput.transformer.median` are by name."""
    flat: Line = {}
    _flatten_into(flat, name, section)
    for key, part in _named_parts(name, section or {}):
        _flatten_into(flat, key, part)
    return flat


def _named_parts(name: str, section: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if name == "quality":
        yield from ((f"quality.{score['name']}", score) for score in section.get("scores", ()))
    if name == "timing":
        yield from ((f"timing.{one['regime']}.{one['column']}", one) for one in section.get("columns", ()))


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
    """Of one type: where plugins' parameters differ in it, or are whole numbers beyond all types, each is its JSON."""
    kinds = set(map(type, values)) - {type(None)}
    make: Callable[[Any], Any] = json.dumps
    if kinds == {int, float}:
        make = float
    elif len(kinds) < 2 and not (kinds == {int} and any(value and abs(value) > MOST_WHOLE for value in values)):
        return values
    return [None if value is None else make(value) for value in values]


def _flatten_into(flat: dict[str, Any], path: str, value: Any) -> None:
    if path in _LEFT_OUT:
        return
    if isinstance(value, dict) and path != "missing":
        for name, item in value.items():
            if not (name in _RAW and path.startswith(("timing.", "quality."))):
                _flatten_into(flat, f"{path}.{name}", item)
    elif isinstance(value, (list, dict)):
        flat[path] = msgspec.json.encode(value).decode()
    else:
        flat[path] = value
