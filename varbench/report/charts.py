"""What all figures share: Vega-Lite specs as plain data, one palette for light and dark, one look.

A figure is one or more cells. The page lays cells out in a grid that folds on a phone; a static file concatenates them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

# Told apart by people with the common colour deficiencies, and legible on white as on near-black.
PALETTE = ("#3f7fd0", "#d9742b", "#1f9e83", "#b65aa8", "#a98b1a", "#c9504f", "#7a74d6", "#5d9430", "#8a6a55", "#4aa3b8")
NEUTRAL = "#868d98"
INVALID = "#a9adb5"
HEIGHT = 320

_CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor", "titleColor": "currentColor", "tickColor": "currentColor",
        "domainColor": "currentColor", "gridColor": "currentColor", "gridOpacity": 0.12, "domainOpacity": 0.5,
        "tickOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500, "titlePadding": 10,
        "labelOverlap": True,
    },
    "legend": {
        "labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12,
        "orient": "top", "symbolType": "circle", "labelLimit": 260, "titleFontWeight": 500,
    },
    "title": {"color": "currentColor", "fontSize": 13, "fontWeight": 600, "anchor": "start"},
    "text": {"color": "currentColor", "fontSize": 11},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One chart. `alt` is read out where it cannot be seen."""

    spec: Spec
    alt: str
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    key: str  # file name of the static figure, anchor on the page
    title: str
    caption: str
    cells: tuple[Cell, ...]
    columns: int = 1


def chart(
    layers: Sequence[Spec], *, values: Sequence[Mapping[str, Any]] = (), height: int = HEIGHT, **more: Any
) -> Spec:
    """A layered spec as wide as its place; a layer may bring data of its own."""
    return {"data": {"values": list(values)}, "width": "container", "height": height, "layer": list(layers), **more}


def family_scale(families: Sequence[str], full: Sequence[str]) -> Spec:
    """One colour per family in every figure of a block: the full model is neutral, the rest follow the palette."""
    others = [family for family in families if family not in full]
    colours = {family: PALETTE[index % len(PALETTE)] for index, family in enumerate(others)}
    return {
        "domain": list(families),
        "range": [NEUTRAL if family in full else colours[family] for family in families],
    }


def axis(field: str, title: str, *, kind: str = "quantitative", **more: Any) -> Spec:
    found: Spec = {"field": field, "type": kind, "title": title}
    scale = more.pop("scale", None)
    if kind == "quantitative":
        found["scale"] = {"zero": False, "nice": True, **(scale or {})}
    elif scale is not None:
        found["scale"] = scale
    return {**found, **more}


def page_spec(cell: Cell) -> Spec:
    """The spec as the page embeds it: colours of text follow the page's theme."""
    return {**_base(), **copy.deepcopy(cell.spec), "description": cell.alt}


def static_spec(figure: Figure) -> Spec:
    """The figure as one spec with fixed sizes, black on white."""
    width = 640 if figure.columns == 1 else 300
    cells = []
    for cell in figure.cells:
        spec = {**copy.deepcopy(cell.spec), "width": width}
        if cell.title:
            spec["title"] = cell.title
        cells.append(spec)
    body: Spec = {"concat": cells, "columns": figure.columns, "spacing": 28} if len(cells) > 1 else cells[0]
    static: Spec = _concrete({**_base(), **body, "background": "#ffffff", "padding": 14})
    static["config"]["font"] = "Liberation Sans, DejaVu Sans, Arial, sans-serif"
    return static


def _base() -> Spec:
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": copy.deepcopy(_CONFIG)}


def _concrete(value: Any) -> Any:
    """`currentColor` means nothing to a file without a page around it. Data stay as they are."""
    if isinstance(value, dict):
        return {name: item if name == "values" else _concrete(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_concrete(item) for item in value]
    return "#22262c" if value == "currentColor" else value
