"""Figures of what was computed: the plan, memory over the steps, time per scale."""

from __future__ import annotations

from typing import Any

from varbench.record import PlanStep, PlanSummary
from varbench.show.charts import (
    NEUTRAL,
    PALETTE,
    Figure,
    Plot,
    Spec,
    Swatch,
    axis,
    chart,
    colour,
    ramp,
)
from varbench.show.drawn_rows import MOST_ROWS, how_many, label, lines_of
from varbench.show.entries import Block, Entry

MEBIBYTE = 1 << 20


def plan_maps(block: Block) -> Figure | None:
    """One map per plan: rows that do the same work share it."""
    by_digest: dict[str, tuple[PlanSummary, list[Entry]]] = {}
    for entry in block.entries:
        plan = entry.first.plan
        if plan is not None and plan.steps:
            by_digest.setdefault(plan.digest, (plan, []))[1].append(entry)
    if not by_digest:
        return None
    drawn = list(by_digest.values())[:MOST_ROWS]
    full = block.full.get("lossless")
    widest = _widest_tokens([plan for plan, _ in drawn])
    backbones = dict.fromkeys(step.backbone for plan, _ in drawn for step in plan.steps)
    shades = dict(zip(backbones, PALETTE, strict=False))
    cells = []
    for plan, entries in drawn:
        values = [value for step in plan.steps for value in _map_values(step, widest)]
        names = label(entries[0]) if len(entries) < 3 else f"{label(entries[0])} and {len(entries) - 1} more"
        names = " = ".join(label(entry) for entry in entries) if len(entries) == 2 else names
        tint = colour("backbone", shades, values)
        y = axis(
            "layer",
            "layer",
            kind="ordinal",
            sort="descending",
            axis={"values": _ticks(values), "grid": False},
        )
        x = axis("step", "scale", kind="nominal", sort=None, axis={"labelAngle": 0, "grid": False})
        layers: list[Spec] = [
            {
                "mark": {"type": "rect", "stroke": "currentColor", "strokeOpacity": 0.15, "strokeWidth": 0.5},
                "encoding": {
                    "x": x, "y": y, "color": tint,
                    "opacity": {
                        "field": "share", "type": "quantitative", "scale": {"domain": [0, 1], "range": [0.12, 0.9]},
                        "legend": None,
                    },
                    "tooltip": [
                        {"field": "step", "title": "scale"}, {"field": "layer"}, {"field": "backbone"},
                        {"field": "attention", "title": "attention tokens"}, {"field": "ffn", "title": "FFN tokens"},
                        {"field": "reads", "title": "cache entries read"}, {"field": "kept", "title": "entries kept after"},
                    ],
                },
            },
            {
                "transform": [{"filter": "datum.kept > 0"}],
                "mark": {"type": "circle", "color": "currentColor", "opacity": 0.85},
                "encoding": {
                    "x": x, "y": y,
                    "size": {
                        "field": "kept", "type": "quantitative", "legend": None,
                        "scale": {"domain": [0, _most_kept(block)], "range": [3, 42]},
                    },
                },
            },
        ]  # fmt: skip
        work = _share_of(entries[0], full)
        title = f"{names}: {work}" if work else names
        deepest = max(value["layer"] for value in values) + 1
        spec = chart(layers, values=values, height=max(120, min(300, deepest * 12)))
        cells.append(Plot(spec=spec, title=title, alt=f"Map of the layers that run at each scale for {title}"))
    return Figure(
        key="plans", title="What each method computes", columns=3, cells=tuple(cells),
        legend=tuple(Swatch(name=f"backbone {name}", colour=shade, symbol="■") for name, shade in shades.items()),
        caption="Layers by scales, as planned. A filled square runs, paler where fewer tokens are computed; the dot is what "
        "its cache still holds after the step. Empty means: not computed." + _cut(len(cells), len(by_digest), "plans"),
    )  # fmt: skip


def memory_over_steps(block: Block) -> Figure | None:
    """Measured state stacked on the weights, with the planned activations above, and the plan's state as a mark."""
    cells = []
    rows = [
        entry for entry in lines_of(block) if entry.first.memory is not None and entry.first.memory.state_peak_bytes
    ]
    tops = []
    for entry in rows:
        memory, plan = entry.first.memory, entry.first.plan
        assert memory is not None
        assert memory.state_peak_bytes is not None
        weights = memory.weights_bytes or 0
        values: list[dict[str, Any]] = []
        marks: list[dict[str, Any]] = []
        for index, state in enumerate(memory.state_peak_bytes):
            step = plan.steps[index] if plan is not None and index < len(plan.steps) else None
            name = step_name(step) if step is not None else str(index + 1)
            parts = {"weights": weights, "state, measured": state}
            if step is not None and step.activation_bytes is not None:
                parts["activations, planned"] = step.activation_bytes
            values += [
                {"step": name, "part": part, "order": order, "MiB": size / MEBIBYTE}
                for order, (part, size) in enumerate(parts.items())
            ]
            predicted = step.state_peak_bytes if step is not None else None
            if predicted is not None and plan is not None and plan.batch == memory.batch:
                marks.append({"step": name, "MiB": (weights + predicted) / MEBIBYTE, "state": predicted / MEBIBYTE})
            tops.append(sum(parts.values()) / MEBIBYTE)
        cells.append((label(entry), values, marks))
    if not cells:
        return None
    y_scale = {"domain": [0, max(tops) * 1.05], "nice": False}
    parts_colours = {"weights": NEUTRAL, "state, measured": PALETTE[0], "activations, planned": PALETTE[1]}
    parts_scale = {"domain": list(parts_colours), "range": list(parts_colours.values())}
    figure_cells = []
    for name, values, marks in cells:
        x = axis("step", "scale", kind="nominal", sort=None, axis={"labelAngle": 0})
        layers: list[Spec] = [
            {
                "mark": {"type": "bar", "opacity": 0.85},
                "encoding": {
                    "x": x, "y": axis("MiB", "MiB", scale=y_scale, stack="zero"), "order": {"field": "order"},
                    "color": {"field": "part", "type": "nominal", "scale": parts_scale, "legend": None},
                    "tooltip": [{"field": "step", "title": "scale"}, {"field": "part"}, {"field": "MiB", "format": ",.1f"}],
                },
            },
            {
                "data": {"values": marks},
                "mark": {"type": "tick", "color": "currentColor", "thickness": 2, "bandSize": 14},
                "encoding": {
                    "x": x, "y": axis("MiB", "MiB", scale=y_scale),
                    "tooltip": [{"field": "state", "title": "state predicted, MiB", "format": ",.3f"}],
                },
            },
        ]  # fmt: skip
        alt = f"Memory after each scale for {name}: weights, state and activations"
        figure_cells.append(Plot(spec=chart(layers, values=values, height=220), title=name, alt=alt))
    return Figure(
        key="memory", title="Memory over the steps", columns=3, cells=tuple(figure_cells),
        legend=tuple(Swatch(name=name, colour=shade, symbol="■") for name, shade in parts_colours.items()),
        caption="Weights (grey), largest state within each step (blue) as measured, activations (orange) as planned. The "
        "dark mark is where the plan predicts the state to end." + how_many(block, len(cells)),
    )  # fmt: skip


def time_per_scale(block: Block) -> Figure | None:
    values = []
    names: list[str] = []
    for entry in lines_of(block):
        timing, plan = entry.first.timing, entry.first.plan
        if timing is None or timing.per_scale is None:
            continue
        for index, seconds in enumerate(timing.per_scale.seconds):
            step = plan.steps[index] if plan is not None and index < len(plan.steps) else None
            name = step_name(step) if step is not None else str(index + 1)
            names += [name] if name not in names else []
            values.append({"row": label(entry), "scale": name, "order": index, "ms": seconds * 1e3})
    if not values:
        return None
    rows = list(dict.fromkeys(value["row"] for value in values))
    layer: Spec = {
        "mark": {"type": "bar", "stroke": "currentColor", "strokeOpacity": 0.25, "strokeWidth": 0.5},
        "encoding": {
            "x": axis("ms", "milliseconds a call", stack="zero", scale={"zero": True}),
            "y": axis("row", "", kind="nominal", sort=None, axis={"labelLimit": 170, "title": None}),
            "order": {"field": "order"},
            "color": {
                "field": "scale",
                "type": "ordinal",
                "sort": names,
                "scale": {"domain": names, "range": ramp(len(names))},
                "legend": {"title": "scale", "symbolType": "square", "symbolStrokeWidth": 0, "columns": 10},
            },
            "tooltip": [{"field": "row"}, {"field": "scale"}, {"field": "ms", "format": ",.3f"}],
        },
    }
    return Figure(
        key="time-per-scale", title="Time per scale",
        caption="From the calls that are timed: together the steps are the median call's loop over the scales."
        + how_many(block, len(rows)),
        cells=(Plot(spec=chart([layer], values=values, height=30 * len(rows) + 10), alt="Stacked bars: time per scale and row"),),
        legend=tuple(
            Swatch(name=f"scale {name}", colour=shade, symbol="■")
            for name, shade in zip(names, ramp(len(names)), strict=True)
        ),
    )  # fmt: skip


def _map_values(step: PlanStep, widest: dict[str, int]) -> list[dict[str, Any]]:
    name = step_name(step)
    return [
        {
            "step": name, "layer": layer, "backbone": step.backbone, "attention": run.attention_tokens,
            "ffn": run.ffn_tokens, "reads": run.reads, "kept": run.kept,
            "share": run.attention_tokens / widest[name] if widest[name] else 0,
        }
        for run in step.calls
        for layer in run.layers
    ]  # fmt: skip


def _widest_tokens(plans: list[PlanSummary]) -> dict[str, int]:
    """Most tokens that any plan computes in a step of that name: what the paler squares are pale against."""
    widest: dict[str, int] = {}
    for plan in plans:
        for step in plan.steps:
            most = max((run.attention_tokens for run in step.calls), default=0)
            widest[step_name(step)] = max(most, widest.get(step_name(step), 0))
    return widest


def _most_kept(block: Block) -> int:
    plans = [entry.first.plan for entry in block.entries if entry.first.plan is not None]
    return max((run.kept for plan in plans for step in plan.steps for run in step.calls), default=1) or 1


def step_name(step: PlanStep) -> str:
    """`5`, or `1-5` for a step that encodes several scales."""
    return str(step.scales[0]) if len(step.scales) == 1 else f"{step.scales[0]}-{step.scales[-1]}"


def _ticks(values: list[dict[str, Any]]) -> list[int]:
    deepest = max(value["layer"] for value in values)
    return sorted(
        {0, deepest, *range(0, deepest, 5 if deepest > 12 else 2)} - ({deepest - 1} if deepest > 12 else set())
    )


def _share_of(entry: Entry, full: Entry | None) -> str:
    plan = entry.first.plan
    if (
        full is None
        or full.first.plan is None
        or plan is None
        or not plan.totals.flops
        or not full.first.plan.totals.flops
    ):
        return ""
    return f"{plan.totals.flops / full.first.plan.totals.flops:.0%} of the FLOPs"


def _cut(drawn: int, total: int, what: str) -> str:
    return "" if drawn == total else f" {drawn} of {total} {what} are drawn."
