"""Panels of plugins: typed parts, never HTML. A plugin can add to the page, and cannot reach into it.

Text is escaped by the template. A chart is Vega-Lite data; whatever would load or link to something else is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varbench.errors import UserError

PNG_START = b"\x89PNG\r\n\x1a\n"
_LINKS = ("url", "href", "usermeta")  # of a Vega-Lite spec: what reaches outside it
_SEVERAL = (list, tuple)


@dataclass(frozen=True, kw_only=True)
class Text:
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Vega-Lite spec with its data inside. `alt` is read out where it cannot be seen."""

    spec: dict[str, Any]
    alt: str


@dataclass(frozen=True, kw_only=True)
class Image:
    png: bytes
    alt: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """What `varbench_report_sections` returns, any number of them."""

    title: str
    parts: Sequence[Text | Table | Chart | Image]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A section as the page takes it, with the plugin and the distribution that it comes from."""

    source: str
    section: Section


_TYPES: Mapping[type, Mapping[str, type | tuple[type, ...]]] = {
    Section: {"title": str, "parts": _SEVERAL},
    Text: {"text": str},
    Table: {"columns": _SEVERAL, "rows": _SEVERAL},
    Chart: {"spec": dict, "alt": str},
    Image: {"png": bytes, "alt": str},
}


def checked(section: Section) -> Section:
    """The section, or UserError that says which part of it cannot be shown and why."""
    if not isinstance(section, Section):
        raise UserError(f"a report section is a Section, and this one is a {type(section).__name__}")
    _refuse_types(section, "a section")
    for number, part in enumerate(section.parts, 1):
        where = f"part {number} of section {section.title!r}"
        _refuse_types(part, where)
        if isinstance(part, Chart):
            _refuse_links(part.spec, where)
        elif isinstance(part, Image):
            if not part.png.startswith(PNG_START):
                raise UserError(f"{where} is not a PNG: it starts with {part.png[:8]!r}")
        elif isinstance(part, Table):
            for row in part.rows:
                if len(row) != len(part.columns):
                    raise UserError(f"{where} has a row of {len(row)} cells under {len(part.columns)} columns")
        elif not isinstance(part, Text):
            raise UserError(f"{where} is a {type(part).__name__}; it may be Text, Table, Chart or Image")
    return section


def given(sections: Iterable[Any]) -> list[Section]:
    """What a plugin gave, checked. A section that cannot be shown becomes one that says why; the rest is shown."""
    found = []
    for section in sections:
        try:
            found.append(checked(section))
        except UserError as error:
            title = section.title if isinstance(section, Section) else "A panel"
            found.append(Section(title=title, parts=[Text(text=f"This panel cannot be shown: {error}")]))
    return found


def to_data(section: Section) -> dict[str, Any]:
    """The section as plain JSON values. What stands in a table's cell is a number or text."""
    return {"title": str(section.title), "parts": [_part_to_data(part) for part in section.parts]}


def from_data(data: Any) -> Section:
    """The section of `to_data`, checked; UserError where it is none, for it comes from another process."""
    try:
        return checked(Section(title=str(data["title"]), parts=[_part_from_data(part) for part in data["parts"]]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"this is no report section: {type(error).__name__}: {error}") from error


def _part_to_data(part: Text | Table | Chart | Image) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"kind": "text", "text": str(part.text)}
    if isinstance(part, Table):
        rows = [[cell if isinstance(cell, (int, float, str)) else str(cell) for cell in row] for row in part.rows]
        return {"kind": "table", "columns": [str(column) for column in part.columns], "rows": rows}
    if isinstance(part, Chart):
        return {"kind": "chart", "spec": part.spec, "alt": str(part.alt)}
    return {"kind": "image", "png": base64.b64encode(part.png).decode(), "alt": str(part.alt)}


def _part_from_data(data: Any) -> Text | Table | Chart | Image:
    kind = data["kind"]
    if kind == "text":
        return Text(text=str(data["text"]))
    if kind == "table":
        return Table(columns=[str(column) for column in data["columns"]], rows=[list(row) for row in data["rows"]])
    if kind == "chart":
        return Chart(spec=dict(data["spec"]), alt=str(data["alt"]))
    if kind == "image":
        return Image(png=base64.b64decode(data["png"], validate=True), alt=str(data["alt"]))
    raise ValueError(f"no part is a {kind!r}")


def _refuse_types(thing: object, where: str) -> None:
    for name, kinds in _TYPES.get(type(thing), {}).items():
        if not isinstance(value := getattr(thing, name), kinds):
            wanted = "list" if kinds is _SEVERAL else getattr(kinds, "__name__", "")
            raise UserError(f"{where}: {name} is a {type(value).__name__}; give a {wanted}")


def _refuse_links(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _LINKS:
                raise UserError(f"{where} has {name!r}: a chart brings its data along and links to nothing")
            if name != "values":  # rows of data are only data
                _refuse_links(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_links(item, where)
