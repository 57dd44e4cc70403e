"""Pictures of what is bought and what it costs: quality against speed and against memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from varbench.show import words
from varbench.show.charts import (
    INVALID,
    NEUTRAL,
    PALETTE,
    Figure,
    MapCell,
    Spec,
    Swatch,
    axis,
    chart,
    colour,
    swatches,
)
from varbench.show.entries import Block, Entry, score_label

MOST_ROWS = 12  # figures with a place for each row; more would not be read
MOST_LABELS = 14
MOST_POINTS = 300
MOST_NAMES = 12  # of a legend


def colours_of(block: Block) -> dict[str, str]:
    """One colour per family in every figure of a block: the full model is neutral, the rest follow the palette."""
    full = {entry.family for entry in block.entries if entry.is_full}
    families = list(dict.fromkeys(entry.family for entry in block.entries if entry.family not in full))
    colours = {family: PALETTE[place % len(PALETTE)] for place, family in enumerate(families)}
    return {**dict.fromkeys(full, NEUTRAL), **colours}


def candidates(block: Block) -> Sequence[Entry]:
    """The rows of scatter plots, in the table's order, which has the believable and the best first."""
    return block.entries[:MOST_POINTS]


def shown(block: Block) -> list[Entry]:
    """The rows of figures that have a place for each: the full model first, then the table's order."""
    return [entry for entry in block.entries if entry.complete][:MOST_ROWS]


def how_many(block: Block, count: int) -> str:
    total = len(block.entries)
    return "" if count == total else f" {count} of {total} rows are drawn."


def label(entry: Entry) -> str:
    upstream = entry.first.protocol.accounting == "upstream" and "upstream" not in entry.name
    return f"{entry.name} (upstream)" if upstream else entry.name


def quality_against_speed(block: Block) -> Figure | None:
    points = []
    for entry in candidates(block):
        quality, speedup = _quality(entry, block), entry.speedups.get("lossless")
        if quality is not None and speedup is not None:
            span = {"x": speedup.value, "x_low": speedup.low, "x_high": speedup.high}
            points.append({**_point(entry, block), **span, "x_text": f"{speedup.value:.2f}x"})
    if len(points) < 2:
        return None
    x_title = "speedup over the full model (further right is faster)"
    under: list[Spec] = []
    caption = f"Transformer, batch {block.conditions['batch']}. Bars are 95 % intervals; the dashed line is the Pareto frontier of the valid rows."
    if block.itself is not None:
        band = {"x_low": block.itself.low, "x_high": block.itself.high}
        under.append({
            "data": {"values": [band]}, "mark": {"type": "rect", "color": "currentColor", "opacity": 0.08},
            "encoding": {"x": axis("x_low", x_title), "x2": {"field": "x_high"}},
        })  # fmt: skip
        caption += " The grey band is the full model measured against itself."
    spec = chart([*under, *_trade_off(points, block, x_title, faster_is_right=True)], values=points, height=380)
    return Figure(
        key="quality-speed", title="Quality against speed", caption=caption + _floor_caption(block) + _cut(block),
        cells=(MapCell(spec=spec, alt=f"Scatter plot of {_score_name(block)} against speedup for {len(points)} rows"),),
        legend=family_legend(block, points),
    )  # fmt: skip


def quality_against_memory(block: Block) -> Figure | None:
    cells = []
    legend: tuple[Swatch, ...] = ()
    for key, title in (("state_peak_bytes", "largest state across scales"), ("peak_bytes", "peak memory")):
        points = []
        for entry in candidates(block):
            value = entry.memory(key)
            if _quality(entry, block) is not None and value is not None:
                mebibytes = value / (1 << 20)
                span = {"x": mebibytes, "x_low": mebibytes, "x_high": mebibytes}
                points.append({**_point(entry, block), **span, "x_text": words.size(value)})
        if len(points) > 1:
            layers = _trade_off(points, block, f"{title}, MiB (further left is less)", faster_is_right=False)
            alt = f"Scatter plot of {_score_name(block)} against {title} for {len(points)} rows"
            cells.append(MapCell(spec=chart(layers, values=points), alt=alt, title=title.capitalize()))
            legend = family_legend(block, points)
    if not cells:
        return None
    return Figure(
        key="quality-memory", title="Quality against memory", columns=2, cells=tuple(cells), legend=legend,
        caption="State is what lives across scales: caches and whatever a method keeps. Peak memory adds weights and "
        "activations. The dashed line is the Pareto frontier of the valid rows." + _cut(block),
    )  # fmt: skip


def frontier(
    points: Sequence[dict[str, Any]], *, more_is_better_x: bool, more_is_better_y: bool
) -> list[dict[str, Any]]:
    """The points that no other beats in both, from left to right."""
    sign_x, sign_y = (1 if more_is_better_x else -1), (1 if more_is_better_y else -1)
    ordered = sorted(points, key=lambda point: (-sign_x * point["x"], -sign_y * point["y"]))
    best: list[dict[str, Any]] = []
    for point in ordered:
        if not best or sign_y * point["y"] > sign_y * best[-1]["y"]:
            best.append(point)
    return sorted(best, key=lambda point: point["x"])


def _trade_off(points: list[dict[str, Any]], block: Block, x_title: str, *, faster_is_right: bool) -> list[Spec]:
    headline = block.headline
    assert headline is not None
    y_title = f"{score_label(headline)} ({headline.better} is better)"
    valid = [point for point in points if point["valid"]]
    best = frontier(valid, more_is_better_x=faster_is_right, more_is_better_y=headline.better == "higher")
    x, y = axis("x", x_title), axis("y", y_title)
    # A method listed at (x, y) also serves whoever asks for less; the steps run towards the worse side of x.
    step = "step-before" if faster_is_right else "step-after"
    family = colour("family", colours_of(block), valid)
    tint = {"condition": {"test": "datum.valid", **family}, "value": INVALID}
    floors = [
        {"y": floor.value, "name": f"{name}: {words.number(floor.value)}"}
        for name, floor in (block_floors(block)).items()
        if floor.value is not None
    ]
    labels = _labels(
        points if len(points) <= MOST_LABELS else [*best, *(p for p in points if not p["valid"])][:MOST_LABELS]
    )
    layers: list[Spec] = []
    if floors:
        layers += [
            {
                "data": {"values": floors}, "encoding": {"y": axis("y", y_title)},
                "mark": {"type": "rule", "strokeDash": [1, 3], "color": "currentColor", "opacity": 0.6},
            },
            {
                "data": {"values": floors},
                "mark": {"type": "text", "align": "right", "dy": -6, "opacity": 0.75},
                "encoding": {"y": axis("y", y_title), "x": {"value": {"expr": "width"}}, "text": {"field": "name"}},
            },
        ]  # fmt: skip
    layers += [
        {
            "data": {"values": best}, "encoding": {"x": x, "y": y, "order": {"field": "x"}},
            "mark": {"type": "line", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.55, "interpolate": step},
        },
        {
            "transform": [{"filter": "datum.valid"}],
            "mark": {"type": "line", "opacity": 0.35, "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y, "color": family, "order": {"field": "x"}},
        },
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": x, "y": axis("y_low", y_title), "y2": {"field": "y_high"}, "color": tint},
        },
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": axis("x_low", x_title), "x2": {"field": "x_high"}, "y": y, "color": tint},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": x, "y": y, "color": tint,
                "shape": {"condition": {"test": "datum.valid", "value": "circle"}, "value": "cross"},
                "tooltip": [
                    {"field": "row"}, {"field": "y_text", "title": score_label(headline)},
                    {"field": "x_text", "title": x_title.partition(" (")[0]}, {"field": "note", "title": "validity"},
                ],
            },
        },
    ]  # fmt: skip
    for (align, dx, dy), placed in labels.items():
        text: Spec = {"x": x, "y": y, "text": {"field": "row"}}
        text["opacity"] = {"condition": {"test": "datum.valid", "value": 1}, "value": 0.55}
        layers.append(
            {
                "data": {"values": placed},
                "mark": {"type": "text", "align": align, "dx": dx, "dy": dy},
                "encoding": text,
            }
        )
    return layers


def _labels(points: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """Points by where their name goes, so that names do not overlap; a name that fits nowhere is left to the tooltip."""
    xs, ys = [point["x"] for point in points], [point["y"] for point in points]
    wide, high = (
        (max(xs, default=1) - min(xs, default=0)) or 1,
        (max(ys, default=1) - min(ys, default=0)) or 1,
    )
    taken: list[tuple[float, float, float, float]] = []
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for point in points:
        at_x, at_y = (
            (point["x"] - min(xs)) / wide * 400,
            260 - (point["y"] - min(ys)) / high * 260,
        )  # about a small plot
        length = 6.2 * len(point["row"])
        for align, dx, dy in (
            ("left", 8, -9),
            ("left", 8, 12),
            ("right", -8, -9),
            ("right", -8, 12),
            ("left", 8, -22),
            ("left", 8, 25),
        ):
            left = at_x + dx if align == "left" else at_x + dx - length
            box = (left, at_y + dy - 6, left + length, at_y + dy + 6)
            outside = left < -40 or left + length > 480
            if not outside and not any(a < box[2] and box[0] < c and b < box[3] and box[1] < d for a, b, c, d in taken):
                taken.append(box)
                found.setdefault((align, dx, dy), []).append(point)
                break
    return found


def block_floors(block: Block) -> dict[str, Any]:
    """Quality floors of the headline score, from the first row that has them."""
    headline = block.headline
    for entry in block.entries:
        quality = entry.first.quality
        if headline is not None and quality is not None and quality.floors:
            names = {"real": "real against real", "reconstruction": "reconstruction"}
            return {names.get(k, k): score for k, score in quality.floors.items() if score.name == headline.name}
    return {}


def _point(entry: Entry, block: Block) -> dict[str, Any]:
    quality = _quality(entry, block)
    return {
        "row": label(entry), "family": entry.family, "y": quality.value, "y_low": quality.low, "y_high": quality.high,
        "y_text": words.with_interval(quality), "valid": entry.believable, "note": entry.trouble or "valid",
    }  # fmt: skip


def _quality(entry: Entry, block: Block) -> Any:
    return entry.score(block.headline.name) if block.headline is not None else None


def family_legend(block: Block, points: Sequence[dict[str, Any]]) -> tuple[Swatch, ...]:
    found = swatches(colour("family", colours_of(block), [point for point in points if point["valid"]]))
    more = len(found) - MOST_NAMES
    if more > 0:
        found = (
            *found[:MOST_NAMES],
            Swatch(name=f"and {more} more, by name in the table and on hover", symbol="…"),
        )
    doubted = any(not point["valid"] for point in points)
    return (*found, Swatch(name="not valid", colour=INVALID, symbol="✚")) if doubted else found


def _score_name(block: Block) -> str:
    return score_label(block.headline) if block.headline is not None else "quality"


def _floor_caption(block: Block) -> str:
    return " Dotted lines are the floors no generator gets below at this sample size." if block_floors(block) else ""


def _cut(block: Block) -> str:
    total = len(block.entries)
    return f" The first {MOST_POINTS} of {total} rows are drawn." if total > MOST_POINTS else ""
