"""Pictures of training: quality over steps, the full plan against smaller ones by recipe, and loss by what was trained."""

from __future__ import annotations

from typing import Any

from varbench.base import stats
from varbench.base.stats import Interval
from varbench.record import Training
from varbench.show import formatting
from varbench.show.charts import NEUTRAL, PALETTE, Figure, Plot, Spec, Swatch, axis, chart, colour, swatches
from varbench.show.drawn_rows import MOST_ROWS, by_point, colours_of
from varbench.show.entries import Block, Entry, score_label
from varbench.show.score_differences import interval_of
from varbench.show.training_notes import trainings

DASHES = (([1, 0], "━"), ([6, 3], "╍"), ([2, 2], "┅"), ([8, 3, 2, 3], "╌"))
SHAPES = (("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("diamond", "◆"), ("triangle-down", "▼"))


def quality_over_steps(block: Block) -> Figure | None:
    """Every recipe at its points, as they were evaluated during training; seeds are averaged."""
    found: dict[tuple[str, str, int], list[Interval]] = {}
    score = None
    for training in _trainings(block):
        for evaluation in training.evaluations:
            if evaluation.score.value is None or (score is not None and evaluation.score.name != score.name):
                continue
            score = score or evaluation.score
            key = (training.recipe, evaluation.point, evaluation.step)
            found.setdefault(key, []).append(interval_of(evaluation.score))
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
    points = sorted({value["point"] for value in values}, key=by_point)
    dashes = [DASHES[place % len(DASHES)] for place in range(len(points))]
    tint = _recipe_colour(block, values)
    # So few that every tick has its number.
    steps = axis("step", "optimiser steps", scale={"zero": True}, axis={"tickCount": 8})
    encoding = {"x": steps, "color": tint}
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
                "tooltip": [
                    {"field": "recipe"}, {"field": "point"}, {"field": "step"}, {"field": "text", "title": title}, {"field": "seeds"},
                ],
            },
        },
    ]  # fmt: skip
    return Figure(
        key="training",
        title="Quality during training",
        caption="One set of weights per recipe, at each point that it "
        "is made for, at equal steps and equal data order. Bands are 95 % intervals, over seeds where there are several.",
        cells=(Plot(spec=chart(layers, values=values, height=360), alt=f"{title} over optimiser steps by recipe"),),
        legend=swatches(tint) + _marks(points, [symbol for _, symbol in dashes]),
    )


def full_against_smaller(block: Block) -> Figure | None:
    """What a recipe costs the full model, and what it gives the smaller plans that run on the same weights."""
    whole = block.full.get("lossless")
    plan = whole.first.plan if whole is not None else None
    by_family: dict[str, dict[str, Entry]] = {}
    for entry in block.entries:
        row = entry.first.row
        if entry.first.training is not None and row.point and not row.params and entry.believable:
            by_family.setdefault(entry.family, {})[row.point] = entry
    values: list[dict[str, Any]] = []
    for family, points in by_family.items():
        full = next((entry for entry in points.values() if plan is not None and _runs(entry) == plan.digest), None)
        for point, entry in points.items():
            if full is None or entry is full or full.quality is None or entry.quality is None:
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
    x_title, y_title = f"{name} of the full plan", f"{name} of the smaller plan"
    tint = _recipe_colour(block, values)
    smaller = sorted({value["point"] for value in values}, key=by_point)
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(smaller))]
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
                    "field": "point", "type": "nominal", "scale": {"domain": smaller, "range": [shape for shape, _ in shapes]},
                    "legend": {"title": "point", "symbolFillColor": "currentColor"},
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
        key="recipes",
        title="One set of weights, run in full and in part",
        caption="Each mark is one recipe's trained weights: the full model's plan against a smaller one, on the same weights. "
        f"The {corner} corner is best in both. Bars are 95 % intervals.",
        cells=(Plot(spec=chart(layers, values=values, height=360), alt=f"{y_title} against {x_title}, by recipe"),),
        legend=swatches(tint) + _marks(smaller, [symbol for _, symbol in shapes]),
    )


def loss_per_point(block: Block) -> Figure | None:
    """Training loss of one seed of every recipe, smoothed, one line for each point that steps trained."""
    cells = []
    everywhere = {curve.point for training in _trainings(block) for curve in training.losses}
    points = sorted(everywhere, key=by_point)
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
                "x": axis("step", "optimiser steps"),
                "y": axis("loss", "cross-entropy"),
                "color": colour("point", shades, values),
                "tooltip": [{"field": "point"}, {"field": "step"}, {"field": "loss", "format": ".4f"}],
            },
        }
        cells.append(
            Plot(spec=chart([layer], values=values, height=220), title=recipe, alt=f"Training loss of {recipe}")
        )
    if not cells:
        return None
    return Figure(
        key="losses", title="Training loss", columns=3, cells=tuple(cells),
        legend=tuple(Swatch(name=name, colour=shade, symbol="━") for name, shade in shades.items()),
        caption="Mean of neighbouring optimiser steps, by the point that the step trained.",
    )  # fmt: skip


def _trainings(block: Block) -> list[Training]:
    """Those of the first recipes that may be believed, in the order of the table."""
    found = trainings(entry for entry in block.everything if entry.believable)
    return [training for repeats in list(found.values())[:MOST_ROWS] for training in repeats]


def _runs(entry: Entry) -> str | None:
    """The digest of the plan that it runs."""
    return entry.first.plan.digest if entry.first.plan is not None else None


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
