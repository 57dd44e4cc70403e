"""Figures of training: quality over steps, full against subnet by recipe, loss per depth, and where depth matters."""

from __future__ import annotations

from typing import Any

from varbench.base import stats
from varbench.base.stats import Interval
from varbench.record import Training
from varbench.show import formatting
from varbench.show.charts import NEUTRAL, PALETTE, Figure, Plot, Spec, Swatch, axis, chart, colour, swatches
from varbench.show.drawn_rows import MOST_ROWS, colours_of
from varbench.show.entries import Block, Entry, score_label
from varbench.show.published import published_asymmetry

ASYMMETRY = "scale_depth_asymmetry"
DASHES = (([1, 0], "━"), ([6, 3], "╍"), ([2, 2], "┅"), ([8, 3, 2, 3], "╌"))
SHAPES = (("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("diamond", "◆"), ("triangle-down", "▼"))


def quality_over_steps(block: Block) -> Figure | None:
    """Every recipe's full model and subnets, as they were evaluated during training; seeds are averaged."""
    found: dict[tuple[str, str, int], list[Interval]] = {}
    score = None
    for training in _trainings(block):
        for evaluation in training.evaluations:
            value = evaluation.score.value
            if value is None or (score is not None and evaluation.score.name != score.name):
                continue
            score = score or evaluation.score
            low = value if evaluation.score.low is None else evaluation.score.low
            high = value if evaluation.score.high is None else evaluation.score.high
            key = (training.recipe, evaluation.point, evaluation.step)
            found.setdefault(key, []).append(Interval(value=value, low=low, high=high))
    if score is None:
        return None
    values: list[dict[str, Any]] = []
    for (recipe, point, step), repeats in found.items():
        middle = stats.combine(repeats)
        text = formatting.with_interval(middle)
        values.append({
            "recipe": recipe, "point": point, "step": step, "seeds": len(repeats), "value": middle.value,
            "low": middle.low, "high": middle.high, "text": text,
        })  # fmt: skip
    title = f"{score_label(score)} ({score.better} is better)"
    points = sorted({value["point"] for value in values}, key=_depth_order)
    dashes = [DASHES[place % len(DASHES)] for place in range(len(points))]
    tint = _recipe_colour(block, values)
    encoding = {"x": axis("step", "optimiser steps", scale={"zero": True}), "color": tint}
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.13},
            "encoding": {
                **encoding, "y": axis("low", title), "y2": {"field": "high"}, "detail": [{"field": "point", "type": "nominal"}],
            },
        },
        {
            "mark": {"type": "line", "point": {"size": 45, "filled": True}, "strokeWidth": 2},
            "encoding": {
                **encoding, "y": axis("value", title),
                "strokeDash": {
                    "field": "point", "type": "nominal", "scale": {"domain": points, "range": [dash for dash, _ in dashes]},
                    "legend": {"title": "evaluated at", "symbolType": "stroke", "symbolStrokeColor": "currentColor"},
                },
                "tooltip": [{"field": "recipe"}, {"field": "point"}, {"field": "step"}, {"field": "text", "title": title}, {"field": "seeds"}],
            },
        },
    ]  # fmt: skip
    return Figure(
        key="training", title="Quality during training", caption="Full model and subnets of one set of weights per recipe, at "
        "equal steps and equal data order. Bands are 95 % intervals, over seeds where there are several.",
        cells=(Plot(spec=chart(layers, values=values, height=360), alt=f"{title} over optimiser steps by recipe"),),
        legend=swatches(tint) + _marks(points, [symbol for _, symbol in dashes]),
    )  # fmt: skip


def full_against_subnet(block: Block) -> Figure | None:
    """The central claim on one plot: what a recipe costs the full model, and what it gives the subnet."""
    by_family: dict[str, dict[str, Entry]] = {}
    for entry in block.entries:
        row = entry.first.row
        if entry.first.training is not None and row.point and not row.params and entry.believable:
            by_family.setdefault(entry.family, {})[row.point] = entry
    values: list[dict[str, Any]] = []
    for family, points in by_family.items():
        full = points.get("full")
        for point, entry in points.items():
            if full is None or point == "full" or full.quality is None or entry.quality is None:
                continue
            at_full, at_point = full.quality, entry.quality
            values.append({
                "recipe": family, "point": point, "x": at_full.value, "x_low": at_full.low, "x_high": at_full.high,
                "y": at_point.value, "y_low": at_point.low, "y_high": at_point.high,
                "x_text": formatting.with_interval(at_full), "y_text": formatting.with_interval(at_point),
            })  # fmt: skip
    headline = block.headline
    if headline is None or len({value["recipe"] for value in values}) < 2:
        return None
    name = score_label(headline)
    x_title, y_title = f"{name} of the full depth", f"{name} of the subnet"
    tint = _recipe_colour(block, values)
    subnets = sorted({value["point"] for value in values}, key=_depth_order)
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(subnets))]
    x, y = axis("x", x_title), axis("y", y_title)
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": axis("x_low", x_title), "x2": {"field": "x_high"}, "y": y, "color": tint},
        },
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": x, "y": axis("y_low", y_title), "y2": {"field": "y_high"}, "color": tint},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                "x": x, "y": y, "color": tint,
                "shape": {
                    "field": "point", "type": "nominal", "scale": {"domain": subnets, "range": [shape for shape, _ in shapes]},
                    "legend": {"title": "subnet", "symbolFillColor": "currentColor"},
                },
                "tooltip": [
                    {"field": "recipe"}, {"field": "point"}, {"field": "x_text", "title": x_title},
                    {"field": "y_text", "title": y_title},
                ],
            },
        },
    ]  # fmt: skip
    corner = "lower left" if headline.better == "lower" else "upper right"
    return Figure(
        key="recipes", title="Progressive against fixed ratios",
        caption=f"Each point is one recipe's trained weights: full depth against a subnet of the same weights. The {corner} "
        "corner is best in both. Bars are 95 % intervals.",
        cells=(Plot(spec=chart(layers, values=values, height=360), alt=f"{y_title} against {x_title}, by recipe"),),
        legend=swatches(tint) + _marks(subnets, [symbol for _, symbol in shapes]),
    )  # fmt: skip


def loss_per_depth(block: Block) -> Figure | None:
    """Training loss of one seed of every recipe, smoothed, one line per depth."""
    cells = []
    everywhere = {curve.point for training in _trainings(block) for curve in training.losses}
    points = sorted(everywhere, key=_depth_order)
    shades = dict(zip(points, [NEUTRAL, *PALETTE], strict=False))
    for recipe, training in {training.recipe: training for training in _trainings(block)}.items():
        values: list[dict[str, Any]] = []
        for curve in training.losses:
            for step, loss in _smoothed(curve.steps, curve.losses):
                values.append({"point": curve.point, "step": step, "loss": loss})
        if not values:
            continue
        layer: Spec = {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {
                "x": axis("step", "optimiser steps"), "y": axis("loss", "cross-entropy"),
                "color": colour("point", shades, values),
                "tooltip": [{"field": "point"}, {"field": "step"}, {"field": "loss", "format": ".4f"}],
            },
        }  # fmt: skip
        cells.append(
            Plot(spec=chart([layer], values=values, height=220), title=recipe, alt=f"Training loss of {recipe}")
        )
    if not cells:
        return None
    return Figure(
        key="losses", title="Training loss per depth", columns=3, cells=tuple(cells),
        legend=tuple(Swatch(name=name, colour=shade, symbol="━") for name, shade in shades.items()),
        caption="Mean of neighbouring optimiser steps, by the depth that the step trained.",
    )  # fmt: skip


def scale_depth_asymmetry(block: Block) -> Figure | None:
    """Where depth matters: the untrained full model with its depth reduced on one zone of scales."""
    entries = list(block.studies.get(ASYMMETRY, ()))
    full = block.full.get("lossless")
    values: list[dict[str, Any]] = []
    for entry in [*([full] if full is not None and entries else []), *entries]:
        quality = entry.quality
        if quality is None:
            continue
        row = entry.first.row
        zone = (
            "nowhere"
            if entry is full
            else ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in row.params.items())
            or row.point
            or entry.name
        )
        values.append({
            "zone": zone, "value": quality.value, "low": quality.low, "high": quality.high, "valid": entry.believable,
            "text": formatting.with_interval(quality), "note": entry.trouble or "valid",
        })  # fmt: skip
    headline = next((entry.headline for entry in entries if entry.headline is not None), None)
    if headline is None or not values:
        return None
    title = f"{score_label(headline)} ({headline.better} is better)"
    x = axis("zone", "depth reduced on", kind="nominal", sort=None, axis={"labelAngle": 0, "labelLimit": 160})
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "opacity": 0.85, "size": 56},
            "encoding": {
                "x": x, "y": axis("value", title, scale={"zero": True}),
                "color": {"condition": {"test": "datum.valid && datum.zone != 'nowhere'", "value": PALETTE[0]}, "value": NEUTRAL},
                "tooltip": [{"field": "zone"}, {"field": "text", "title": title}, {"field": "note", "title": "validity"}],
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": "currentColor"},
            "encoding": {"x": x, "y": axis("low", title, scale={"zero": True}), "y2": {"field": "high"}},
        },
    ]  # fmt: skip
    printed = published_asymmetry()
    caption = (
        "The full model without any further training, with fewer layers on one zone of scales only. Published for "
        f"{printed['model']} ({printed['grade']}; half depth): FID {printed['none']} unreduced, {printed['scales_1_3']} on "
        f"scales 1-3, {printed['scales_4_6']} on 4-6, {printed['scales_7_10']} on 7-10."
    )
    return Figure(
        key="asymmetry", title="Where depth matters", caption=caption,
        cells=(Plot(spec=chart(layers, values=values), alt=f"{title} with depth reduced on one zone of scales"),),
    )  # fmt: skip


def _trainings(block: Block) -> list[Training]:
    """Each training once, since rows share their weights; of the first recipes, in the order of the table."""
    found: dict[str, dict[tuple[str, int], Training]] = {}
    for entry in block.entries:
        for record in entry.complete if entry.believable else ():
            if record.training is not None:
                repeats = found.setdefault(record.training.recipe, {})
                repeats.setdefault((record.training.key, record.training.seed), record.training)
    return [training for repeats in list(found.values())[:MOST_ROWS] for training in repeats.values()]


def _marks(names: list[str], symbols: list[str]) -> tuple[Swatch, ...]:
    """The legend of shapes or dashes, in the colour of text."""
    return tuple(Swatch(name=name, symbol=symbol) for name, symbol in zip(names, symbols, strict=True))


def _recipe_colour(block: Block, values: list[dict[str, Any]]) -> Spec:
    """A recipe has the colour of its family elsewhere; recipes that no row shows come after."""
    colours = colours_of(block)
    for recipe in dict.fromkeys(value["recipe"] for value in values):
        colours.setdefault(recipe, PALETTE[len(colours) % len(PALETTE)])
    return colour("recipe", colours, values, columns=4)


def _smoothed(steps: tuple[int, ...], losses: tuple[float, ...], most: int = 120) -> list[tuple[float, float]]:
    """Means of neighbours, at most so many; the record keeps every step."""
    size = -(-len(steps) // most)
    groups = range(0, len(steps), size) if steps else ()
    return [
        (
            sum(steps[i : i + size]) / len(steps[i : i + size]),
            sum(losses[i : i + size]) / len(losses[i : i + size]),
        )
        for i in groups
    ]


def _depth_order(point: str) -> tuple[int, int, str]:
    """`full` first, then `d16` before `d8`."""
    digits = "".join(letter for letter in point if letter.isdigit())
    return (point != "full", -int(digits or 0), point)
