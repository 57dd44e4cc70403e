"""One picture across blocks: what recipes reach as their trainings grow, where blocks differ in nothing but steps and the machine,
which decides no quality."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varbench.show import formatting
from varbench.show.charts import Figure, Plot, Spec, axis, chart, colour, swatches
from varbench.show.drawn_rows import by_point, colours_of
from varbench.show.entries import Block, score_label

STEPS, MACHINE = "steps", "machine"


def over_budgets(blocks: Sequence[Block]) -> dict[int, Figure]:
    """By the place of the first block of each group that has rows trained for different numbers of steps."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, block in enumerate(blocks):
        alike = tuple((name, value) for name, value in block.conditions.items() if name not in (STEPS, MACHINE))
        groups.setdefault(alike, []).append(place)
    found = {places[0]: _figure([blocks[place] for place in places]) for places in groups.values() if len(places) > 1}
    return {place: figure for place, figure in found.items() if figure is not None}


def _figure(blocks: Sequence[Block]) -> Figure | None:
    headline = blocks[0].headline
    if headline is None:
        return None
    title = f"{score_label(headline)} ({headline.better} is better)"
    by_plan: dict[str, list[Mapping[str, Any]]] = {}
    colours: dict[str, str] = {}
    for block in blocks:
        colours = {**colours_of(block), **colours}
        for plan, value in _values(block, headline.name):
            by_plan.setdefault(plan, []).append(value)
    drawn = [values for values in by_plan.values() if len({value["steps"] for value in values}) > 1]
    if not drawn:
        return None
    tint = colour("family", colours, [value for values in drawn for value in values], columns=4)
    cells = tuple(
        _cell(point, values, title, tint)
        for point, values in sorted(((_most_said(one), one) for one in drawn), key=lambda named: by_point(named[0]))
    )
    return Figure(
        key="budgets",
        title="Quality as training grows",
        caption="Each line is one recipe, trained for different numbers of steps from the same start. A cell is one plan, whoever runs "
        "it: lines in it differ in training alone. Bands are 95 % intervals, over seeds where there are several.",
        cells=cells,
        columns=min(2, len(cells)),
        legend=swatches(tint),
    )


def _values(block: Block, score: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Digests of plans, and what was reached by them."""
    for entry in block.entries:
        training, plan, quality = entry.first.training, entry.first.plan, entry.score(score)
        if training is not None and plan is not None and quality is not None and entry.believable:
            yield plan.digest, {
                "point": entry.first.row.point or entry.name, "family": entry.family, "steps": training.steps,
                "value": quality.value, "low": quality.low, "high": quality.high,
                "text": formatting.with_interval(quality), "seeds": len(entry.complete),
            }  # fmt: skip


def _most_said(values: Sequence[Mapping[str, Any]]) -> str:
    """What most rows call the plan's point."""
    return statistics.mode(str(value["point"]) for value in values)


def _cell(point: str, values: Sequence[Mapping[str, Any]], title: str, tint: Spec) -> Plot:
    known = sorted({value["steps"] for value in values})
    x = axis("steps", "optimiser steps", scale={"type": "log", "nice": False, "padding": 20}, axis={"values": known})
    tooltip = [{"field": "family"}, {"field": "steps"}, {"field": "text", "title": title}, {"field": "seeds"}]
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.13},
            "encoding": {"x": x, "y": axis("low", title), "y2": {"field": "high"}, "color": tint},
        },
        {
            "mark": {"type": "line", "point": {"size": 55, "filled": True}, "strokeWidth": 2},
            "encoding": {"x": x, "y": axis("value", title), "color": tint, "tooltip": tooltip},
        },
    ]
    return Plot(
        spec=chart(layers, values=values, height=260),
        title=point,
        alt=f"{title} over optimiser steps at {point}, by recipe",
    )
