"""What all figures share: Vega-Lite specs as plain data, one palette for light and dark, one look.

A figure is one or more cells. The page lays cells out in a grid that folds on a phone; a static file concatenates them.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

# Told apart by people with the common colour deficiencies, and legible on white as on near-black.
PALETTE = (
    "#3f7fd0",
    "#d9742b",
    "#1f9e83",
    "#b65aa8",
    "#a98b1a",
    "#c9504f",
    "#7a74d6",
    "#5d9430",
    "#8a6a55",
    "#4aa3b8",
)
NEUTRAL = "#868d98"
INVALID = "#a9adb5"
HEIGHT = 320

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"

_CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor", "titleColor": "currentColor", "tickColor": "currentColor",
        "domainColor": "currentColor", "gridColor": "currentColor", "gridOpacity": 0.12, "domainOpacity": 0.5,
        "tickOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500, "titlePadding": 10,
        "labelOverlap": "greedy", "labelSeparation": 8, "labelFlush": False,
    },
    "legend": {
        "labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12,
        "orient": "top", "symbolType": "circle", "symbolOpacity": 1, "symbolStrokeWidth": 2, "labelLimit": 240,
        "titleFontWeight": 500, "titleOrient": "left", "offset": 8,
        "symbolLimit": 12,
    },
    "title": {
        "color": "currentColor", "fontSize": 13, "fontWeight": 600, "anchor": "start", "subtitleColor": "currentColor",
        "subtitleFontSize": 11, "subtitlePadding": 5,
    },
    "text": {"color": "currentColor", "fontSize": 11},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One chart. `alt` is read out where it cannot be seen."""

    spec: Spec
    alt: str
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """One entry of a legend. On the page legends are text, which folds on a phone and is read out."""

    name: str
    colour: str = "currentColor"
    symbol: str = "●"


@dataclass(frozen=True, kw_only=True)
class Figure:
    key: str  # file name of the static figure, anchor on the page
    title: str
    caption: str
    cells: tuple[Plot, ...]
    columns: int = 1
    legend: tuple[Swatch, ...] = ()  # the page's; a static file has the charts' own


def chart(
    layers: Sequence[Spec], *, values: Sequence[Mapping[str, Any]] = (), height: int = HEIGHT, **more: Any
) -> Spec:
    """A layered spec as wide as its place; a layer may bring data of its own."""
    return {
        "data": {"values": list(values)},
        "width": "container",
        "height": height,
        "layer": list(layers),
        **more,
    }


def colour(field: str, colours: Mapping[str, str], values: Sequence[Mapping[str, Any]], *, columns: int = 3) -> Spec:
    """A colour channel whose legend names only what is drawn; none where one name would stand alone."""
    used = [name for name in colours if any(value[field] == name for value in values)]
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": used, "range": [colours[name] for name in used]},
        "legend": {"title": None, "columns": columns} if len(used) > 1 else None,
    }


def swatches(channel: Spec) -> tuple[Swatch, ...]:
    """The legend of a colour channel, as the page shows it."""
    scale = channel["scale"]
    names = zip(scale["domain"], scale["range"], strict=True)
    return tuple(Swatch(name=name, colour=shade) for name, shade in names) if channel["legend"] else ()


def ramp(count: int) -> list[str]:
    """Shades of one colour from light to dark, for things with an order."""
    light, dark = (0xC9, 0xDD, 0xF3), (0x1B, 0x49, 0x85)
    shares = [index / max(count - 1, 1) for index in range(count)]
    shades = [[round(a + (b - a) * share) for a, b in zip(light, dark, strict=True)] for share in shares]
    return ["#" + "".join(f"{part:02x}" for part in shade) for shade in shades]


def axis(field: str, title: str, *, kind: str = "quantitative", **more: Any) -> Spec:
    found: Spec = {"field": field, "type": kind, "title": title}
    scale = more.pop("scale", None)
    if kind == "quantitative":
        linear = {} if scale is not None and scale.get("type") == "log" else {"zero": False}
        found["scale"] = {**linear, "nice": True, **(scale or {})}
    elif scale is not None:
        found["scale"] = scale
    return {**found, **more}


def page_spec(cell: Plot, *, legends: bool = False) -> Spec:
    """The spec as the page embeds it: colours of text follow the page's theme, legends are the page's own."""
    spec = copy.deepcopy(cell.spec) if legends else _without_legends(cell.spec)
    return {**_base(), **spec, "description": cell.alt}


def static_spec(figure: Figure) -> Spec:
    """The figure as one spec with fixed sizes, black on white."""
    width = 640 if figure.columns == 1 else 300
    cells = []
    for cell in figure.cells:
        spec = {**copy.deepcopy(cell.spec), "width": width}
        if cell.title:
            spec["title"] = cell.title
        cells.append(spec)
    body: Spec = {"concat": cells, "columns": figure.columns, "spacing": 28}
    about = {
        "text": figure.title,
        "subtitle": textwrap.wrap(figure.caption, 105),
        "anchor": "start",
        "offset": 16,
    }
    # Where letters are wider than the converter takes them to be, the margin on the left keeps them inside.
    margin = {"left": 32, "right": 14, "top": 14, "bottom": 14}
    static: Spec = _concrete({**_base(), **body, "title": about, "background": "#ffffff", "padding": margin})
    static["config"]["font"] = "Liberation Sans, DejaVu Sans, Arial, sans-serif"
    return static


def _base() -> Spec:
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": copy.deepcopy(_CONFIG)}


def _without_legends(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: None if name == "legend" else _without_legends(item) for name, item in value.items()}
    return [_without_legends(item) for item in value] if isinstance(value, list) else value


def _concrete(value: Any) -> Any:
    """`currentColor` means nothing to a file without a page around it. Data stay as they are."""
    if isinstance(value, dict):
        return {name: item if name == "values" else _concrete(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_concrete(item) for item in value]
    return "#22262c" if value == "currentColor" else value
