"""Pictures of training: quality over steps, full against subnet by recipe, loss per depth, and where depth matters."""

from __future__ import annotations

from typing import Any

from varbench import stats
from varbench.published import published_asymmetry
from varbench.records import Training
from varbench.report import words
from varbench.report.charts import NEUTRAL, PALETTE, Cell, Figure, Spec, axis, chart
from varbench.report.entries import Block, Entry, score_label
from varbench.report.figures import colours_of
from varbench.stats import Interval

ASYMMETRY = "scale_depth_asymmetry"


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
        text = words.with_interval(middle)
        values.append({
            "recipe": recipe, "point": point, "step": step, "seeds": len(repeats), "value": middle.value,
            "low": middle.low, "high": middle.high, "text": text,
        })  # fmt: skip
    title = f"{score_label(score)} ({score.better} is better)"
    encoding = {"x": axis("step", "optimiser steps", scale={"zero": True}), "color": _recipe_colour(block, values)}
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
                "strokeDash": {"field": "point", "type": "nominal", "legend": {"title": "evaluated at", "symbolType": "stroke"}},
                "tooltip": [{"field": "recipe"}, {"field": "point"}, {"field": "step"}, {"field": "text", "title": title}, {"field": "seeds"}],
            },
        },
    ]  # fmt: skip
    return Figure(
        key="training", title="Quality during training", caption="Full model and subnets of one set of weights per recipe, at "
        "equal steps and equal data order. Bands are 95 % intervals, over seeds where there are several.",
        cells=(Cell(spec=chart(layers, values=values, height=360), alt=f"{title} over optimiser steps by recipe"),),
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
                "x_text": words.with_interval(at_full), "y_text": words.with_interval(at_point),
            })  # fmt: skip
    headline = block.headline
    if headline is None or len({value["recipe"] for value in values}) < 2:
        return None
    name = score_label(headline)
    x_title, y_title = f"{name} of the full depth", f"{name} of the subnet"
    colour = _recipe_colour(block, values)
    x, y = axis("x", x_title), axis("y", y_title)
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": axis("x_low", x_title), "x2": {"field": "x_high"}, "y": y, "color": colour},
        },
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": x, "y": axis("y_low", y_title), "y2": {"field": "y_high"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                "x": x, "y": y, "color": colour,
                "shape": {"field": "point", "type": "nominal", "legend": {"title": "subnet", "symbolFillColor": "currentColor"}},
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
        cells=(Cell(spec=chart(layers, values=values, height=360), alt=f"{y_title} against {x_title}, by recipe"),),
    )  # fmt: skip


def loss_per_depth(block: Block) -> Figure | None:
    """Training loss of one seed of every recipe, smoothed, one line per depth."""
    cells = []
    for recipe, training in {training.recipe: training for training in _trainings(block)}.items():
        values: list[dict[str, Any]] = []
        for curve in training.losses:
            for step, loss in _smoothed(curve.steps, curve.losses):
                values.append({"point": curve.point, "step": step, "loss": loss})
        if not values:
            continue
        points = sorted({value["point"] for value in values}, key=_depth_order)
        layer: Spec = {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {
                "x": axis("step", "optimiser steps"), "y": axis("loss", "cross-entropy"),
                "color": {
                    "field": "point", "type": "nominal", "scale": {"domain": points, "range": [NEUTRAL, *PALETTE]},
                    "legend": {"title": None},
                },
                "tooltip": [{"field": "point"}, {"field": "step"}, {"field": "loss", "format": ".4f"}],
            },
        }  # fmt: skip
        cells.append(Cell(spec=chart([layer], values=values, height=220), title=recipe, alt=f"Training loss of {recipe}"))
    if not cells:
        return None
    return Figure(
        key="losses", title="Training loss per depth", columns=3, cells=tuple(cells),
        caption="Mean of neighbouring optimiser steps, by the depth that the step trained.",
    )  # fmt: skip


def scale_depth_asymmetry(block: Block) -> Figure | None:
    """Where depth matters: the untrained full model with its depth reduced on one zone of scales."""
    entries = list(block.studies.get(ASYMMETRY, ()))
    values: list[dict[str, Any]] = []
    for entry in entries:
        quality = entry.quality
        if quality is None:
            continue
        row = entry.first.row
        zone = row.point or ", ".join(f"{name} {value}" for name, value in row.params.items()) or entry.name
        values.append({
            "zone": zone, "value": quality.value, "low": quality.low, "high": quality.high, "valid": entry.believable,
            "text": words.with_interval(quality), "note": entry.trouble or "valid",
        })  # fmt: skip
    if not values:
        return None
    headline = next(entry.headline for entry in entries if entry.headline is not None)
    title = f"{score_label(headline)} ({headline.better} is better)"
    x = axis("zone", "depth reduced on", kind="nominal", sort=None, axis={"labelAngle": 0, "labelLimit": 160})
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "opacity": 0.85, "size": 56},
            "encoding": {
                "x": x, "y": axis("value", title, scale={"zero": True}),
                "color": {"condition": {"test": "datum.valid", "value": PALETTE[0]}, "value": NEUTRAL},
                "tooltip": [{"field": "zone"}, {"field": "text", "title": title}, {"field": "note", "title": "validity"}],
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": "currentColor"},
            "encoding": {"x": x, "y": axis("low", title, scale={"zero": True}), "y2": {"field": "high"}},
        },
    ]  # fmt: skip
    full = block.full.get("lossless")
    if full is not None and full.quality is not None:
        at_full = {"value": full.quality.value, "name": f"full model {words.with_interval(full.quality)}"}
        layers += [
            {
                "data": {"values": [at_full]}, "encoding": {"y": axis("value", title)},
                "mark": {"type": "rule", "strokeDash": [5, 4], "color": "currentColor"},
            },
            {
                "data": {"values": [at_full]},
                "mark": {"type": "text", "align": "right", "dy": -7},
                "encoding": {"y": axis("value", title), "x": {"value": {"expr": "width"}}, "text": {"field": "name"}},
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
        cells=(Cell(spec=chart(layers, values=values), alt=f"{title} with depth reduced on one zone of scales"),),
    )  # fmt: skip


def _trainings(block: Block) -> list[Training]:
    """Each training once: rows that share its weights share it."""
    found: dict[tuple[str, int], Training] = {}
    for entry in block.entries:
        for record in entry.complete:
            if record.training is not None:
                found.setdefault((record.training.key, record.training.seed), record.training)
    return list(found.values())


def _recipe_colour(block: Block, values: list[dict[str, Any]]) -> Spec:
    """A recipe has the colour of its family elsewhere; recipes that no row shows come after."""
    scale = colours_of(block)
    domain, colours = list(scale["domain"]), list(scale["range"])
    for recipe in dict.fromkeys(value["recipe"] for value in values):
        if recipe not in domain:
            domain.append(recipe)
            colours.append(PALETTE[(len(domain) - 1) % len(PALETTE)])
    used = {value["recipe"] for value in values}
    kept = [(name, colour) for name, colour in zip(domain, colours, strict=True) if name in used]
    return {
        "field": "recipe", "type": "nominal", "legend": {"title": None, "columns": 4},
        "scale": {"domain": [name for name, _ in kept], "range": [colour for _, colour in kept]},
    }  # fmt: skip


def _smoothed(steps: tuple[int, ...], losses: tuple[float, ...], most: int = 120) -> list[tuple[float, float]]:
    """Means of neighbours, at most so many; the record keeps every step."""
    size = -(-len(steps) // most)
    groups = range(0, len(steps), size) if steps else ()
    return [
        (sum(steps[i : i + size]) / len(steps[i : i + size]), sum(losses[i : i + size]) / len(losses[i : i + size]))
        for i in groups
    ]


def _depth_order(point: str) -> tuple[int, int, str]:
    """`full` first, then `d16` before `d8`."""
    digits = "".join(letter for letter in point if letter.isdigit())
    return (point != "full", -int(digits or 0), point)
