"""Pictures of studies: the headline score of each of a study's settings beside the full model's, whoever asks the question."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varbench.show import formatting
from varbench.show.charts import NEUTRAL, PALETTE, Figure, Plot, Spec, axis, chart
from varbench.show.drawn_rows import by_point
from varbench.show.entries import Block, Entry, score_label
from varbench.show.published import figures_text, published_for

FULL, UNCHANGED = "full model", "unchanged"


def studies(block: Block) -> Iterator[Figure]:
    """One picture for every study whose rows have a score."""
    for name, entries in block.studies.items():
        figure = _study(name, entries, block)
        if figure is not None:
            yield figure


def _study(name: str, entries: Sequence[Entry], block: Block) -> Figure | None:
    headline = next((entry.headline for entry in entries if entry.headline is not None), None)
    full, grouped = block.full.get("lossless"), _in_groups(entries)
    labels = _labels(entries, without=("point",) if grouped else ())
    labelled = [*([(FULL, full)] if full is not None else []), *zip(labels, entries, strict=True)]
    values: list[dict[str, Any]] = []
    for label, entry in labelled:
        quality = entry.score(headline.name) if headline is not None else None
        if quality is not None:
            values.append({
                "setting": label, "point": entry.first.row.point or FULL, "value": quality.value, "low": quality.low,
                "high": quality.high, "valid": entry.believable and entry is not full,
                "text": formatting.with_interval(quality), "note": entry.trouble or "valid",
            })  # fmt: skip
    if headline is None or all(value["setting"] == FULL for value in values):
        return None
    title = f"{score_label(headline)} ({headline.better} is better)"
    asked = entries[0].of_study
    about = asked.study if asked is not None else None
    heading, caption = (about.title, about.caption) if about is not None else (name, "")
    bars = Plot(spec=_bars(values, title), alt=f"{title} at each setting of the study {heading}")
    cells = tuple(_by_point(values, title)) if grouped else (bars,)
    return Figure(
        key=f"study-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}",
        title=heading,
        caption=" ".join(filter(None, (caption, _published(labelled)))),
        cells=cells,
        columns=min(2, len(cells)),
    )


def _in_groups(entries: Sequence[Entry]) -> bool:
    """Whether each setting stands there at several points."""
    points = {entry.first.row.point for entry in entries}
    settings = set(_labels(entries, without=("point",)))
    return len(points) > 1 and 1 < len(settings) <= len(entries) / 2


def _by_point(values: Sequence[Mapping[str, Any]], title: str) -> Iterator[Plot]:
    """A cell for each point, whose scores lie too far apart for one axis, with a line for each setting."""
    for point in sorted({value["point"] for value in values if value["setting"] != FULL}, key=by_point):
        shown = [value for value in values if value["point"] == point]
        settings = {value["setting"] for value in shown}
        y = axis(
            "setting", "", kind="nominal", sort=None, axis={"labelLimit": 220, "title": None, "labelOverlap": False}
        )
        tint = {"condition": {"test": f"datum.setting === '{UNCHANGED}'", "value": PALETTE[1]}, "value": PALETTE[0]}
        layers: list[Spec] = [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.7},
                "encoding": {"y": y, "x": axis("low", title), "x2": {"field": "high"}, "color": tint},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
                "encoding": {
                    "y": y, "x": axis("value", title),
                    "color": {"condition": [{"test": "!datum.valid", "value": NEUTRAL}, tint["condition"]], "value": PALETTE[0]},
                    "tooltip": [{"field": "setting"}, {"field": "text", "title": title}, {"field": "note", "title": "validity"}],
                },
            },
        ]  # fmt: skip
        spec = chart(layers, values=shown, height=60 + 22 * len(settings))
        yield Plot(spec=spec, title=point, alt=f"{title} at {point}, by setting")


def _bars(values: Sequence[Mapping[str, Any]], title: str) -> Spec:
    x = axis("setting", "", kind="nominal", sort=None, axis={"labelAngle": 0, "labelLimit": 160, "title": None})
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "opacity": 0.85, "size": 56},
            "encoding": {
                "x": x, "y": axis("value", title, scale={"zero": True}),
                "color": {"condition": {"test": "datum.valid", "value": PALETTE[0]}, "value": NEUTRAL},
                "tooltip": [{"field": "setting"}, {"field": "text", "title": title}, {"field": "note", "title": "validity"}],
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": "currentColor"},
            "encoding": {"x": x, "y": axis("low", title, scale={"zero": True}), "y2": {"field": "high"}},
        },
    ]  # fmt: skip
    return chart(layers, values=values)


def _labels(entries: Sequence[Entry], *, without: Sequence[str] = ()) -> list[str]:
    """What tells the rows of a study apart: of plugins, recipe, point and parameters those that are not all the same."""
    parts = []
    for entry in entries:
        row = entry.first.row
        found = {"plugins": "+".join(plugin.name for plugin in row.plugins), "recipe": row.recipe, "point": row.point}
        parts.append({**found, **{key: f"{key.rpartition('.')[2]} {value}" for key, value in row.params.items()}})
    keys = dict.fromkeys(key for found in parts for key in found if key not in without)
    telling = [key for key in keys if len({found.get(key) for found in parts}) > 1]
    labels = [", ".join(str(found[key]) for key in telling if found.get(key) is not None) for found in parts]
    if without:
        return [label or UNCHANGED for label in labels]
    alone = len(set(labels)) == len(labels) and all(labels)
    return labels if alone else [entry.name for entry in entries]


def _published(labelled: Sequence[tuple[str, Entry]]) -> str:
    found = [
        f"{label} {figures_text(line.figures)} ({line.grade})"
        for label, entry in labelled
        if label != FULL
        for line in published_for(entry.first)
    ]
    return f"Published: {'; '.join(found)}." if found else ""
