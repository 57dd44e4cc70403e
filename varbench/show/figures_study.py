"""Pictures of studies: the headline score of each of a study's settings beside the full model's, whoever asks the question."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from varbench.show import formatting
from varbench.show.charts import NEUTRAL, PALETTE, Figure, Plot, Spec, axis, chart
from varbench.show.entries import Block, Entry, score_label
from varbench.show.published import figures_text, published_for

FULL = "full model"


def studies(block: Block) -> Iterator[Figure]:
    """One picture for every study whose rows have a score."""
    for name, entries in block.studies.items():
        figure = _study(name, entries, block)
        if figure is not None:
            yield figure


def _study(name: str, entries: Sequence[Entry], block: Block) -> Figure | None:
    headline = next((entry.headline for entry in entries if entry.headline is not None), None)
    full = block.full.get("lossless")
    named = {**({FULL: full} if full is not None else {}), **dict(zip(_labels(entries), entries, strict=True))}
    values: list[dict[str, Any]] = []
    for label, entry in named.items():
        quality = entry.score(headline.name) if headline is not None else None
        if quality is not None:
            values.append({
                "setting": label, "value": quality.value, "low": quality.low, "high": quality.high,
                "valid": entry.believable and entry is not full, "text": formatting.with_interval(quality),
                "note": entry.trouble or "valid",
            })  # fmt: skip
    if headline is None or all(value["setting"] == FULL for value in values):
        return None
    title = f"{score_label(headline)} ({headline.better} is better)"
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
    about = entries[0].first.study
    heading, caption = (about.title, about.caption) if about is not None else (name, "")
    return Figure(
        key=f"study-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}",
        title=heading,
        caption=" ".join(filter(None, (caption, _published(named)))),
        cells=(Plot(spec=chart(layers, values=values), alt=f"{title} at each setting of the study {heading}"),),
    )


def _labels(entries: Sequence[Entry]) -> list[str]:
    """What tells the rows of a study apart: of plugins, recipe, point and parameters those that are not all the same."""
    parts = []
    for entry in entries:
        row = entry.first.row
        found = {"plugins": "+".join(plugin.name for plugin in row.plugins), "recipe": row.recipe, "point": row.point}
        parts.append({**found, **{key: f"{key.rpartition('.')[2]} {value}" for key, value in row.params.items()}})
    keys = dict.fromkeys(key for found in parts for key in found)
    telling = [key for key in keys if len({found.get(key) for found in parts}) > 1]
    labels = [", ".join(str(found[key]) for key in telling if found.get(key) is not None) for found in parts]
    alone = len(set(labels)) == len(labels) and all(labels)
    return labels if alone else [entry.name for entry in entries]


def _published(named: dict[str, Entry]) -> str:
    found = [
        f"{label} {figures_text(line.figures)} ({line.grade})"
        for label, entry in named.items()
        if label != FULL
        for line in published_for(entry.first)
    ]
    return f"Published: {'; '.join(found)}." if found else ""
