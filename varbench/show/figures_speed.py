"""Figures of speed: the spread of the timings, and measured against predicted on the diagonal and the roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from varbench.base.stats import Interval
from varbench.record import PlanSummary
from varbench.show.charts import Figure, Plot, Spec, axis, chart, colour
from varbench.show.drawn_rows import colours_of, family_legend, how_many, label, lines_of, points_of
from varbench.show.entries import Block, Entry
from varbench.show.figures_work import step_name
from varbench.show.speedups import timing_column

_Sample = TypeVar("_Sample")

MOST_TICKS = 120
"""Of a row; more would lie on each other."""
THINNED = f" (of a row's {MOST_TICKS} at most, evenly chosen from its fastest to its slowest)"


def latency_distributions(block: Block) -> Figure | None:
    rows = lines_of(block)
    cells = []
    thinned = False
    for column, regime, title in (
        ("transformer", "throughput", f"Transformer, batch {block.conditions['batch']}"),
        ("end_to_end", "latency", "End to end, batch 1"),
    ):
        samples: list[dict[str, Any]] = []
        middles = []
        for entry in rows:
            timed: list[dict[str, Any]] = []
            for repeat, record in enumerate(entry.complete):
                found = timing_column(record, column, regime)
                if found is None:
                    continue
                for number, taken in enumerate(found.rounds, 1):
                    about = {
                        "row": label(entry),
                        "family": entry.family,
                        "round": number,
                        "repeat": repeat + 1,
                    }
                    timed += [{**about, "ms": round(second * 1e3, 4)} for second in taken]
            shown = _thinned(sorted(timed, key=lambda sample: sample["ms"]))
            thinned = thinned or len(shown) < len(timed)
            samples += shown
            middle = entry.seconds(column, regime)
            if middle is not None:
                ends = {"low": middle.low * 1e3, "ms": middle.value * 1e3, "high": middle.high * 1e3}
                middles.append({"row": label(entry), "family": entry.family, **ends})
        if not samples:
            continue
        y = axis("row", "", kind="nominal", sort=None, axis={"labelLimit": 170, "title": None})
        tint = {**colour("family", colours_of(block), samples), "legend": None}
        layers: list[Spec] = [
            {
                "mark": {"type": "tick", "thickness": 1.5, "opacity": 0.45, "size": 14},
                "encoding": {
                    "x": axis("ms", "milliseconds a call"), "y": y, "color": tint,
                    "tooltip": [
                        {"field": "row"}, {"field": "ms", "title": "ms", "format": ".4~g"}, {"field": "round"},
                        {"field": "repeat"},
                    ],
                },
            },
            {
                "data": {"values": middles},
                "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.9, "strokeCap": "round"},
                "encoding": {"x": axis("low", "milliseconds a call"), "x2": {"field": "high"}, "y": y, "color": tint},
            },
            {
                "data": {"values": middles},
                "mark": {"type": "point", "filled": True, "size": 60, "color": "currentColor", "opacity": 1},
                "encoding": {"x": axis("ms", "milliseconds a call"), "y": y},
            },
        ]  # fmt: skip
        spec = chart(layers, values=samples, height=max(90, 30 * len(middles)))
        cells.append(Plot(spec=spec, alt=f"Strip plot of timing samples: {title}", title=title))
    if not cells:
        return None
    return Figure(
        key="latency", title="Spread of the timings", columns=2, cells=tuple(cells),
        caption=f"Each tick is one raw sample{THINNED if thinned else ''}, the dot is the median, the bar its 95 % interval."
        + how_many(block, len(rows)),
    )  # fmt: skip


class Foreseen(NamedTuple):
    """A row's time for a batch in the transformer, in milliseconds, measured and predicted."""

    entry: Entry
    plan: PlanSummary
    measured: Interval
    predicted: float

    @property
    def quotient(self) -> float:
        return self.measured.value / self.predicted

    @property
    def device(self) -> str:
        """What it was predicted for, and by whose rates."""
        plan = self.plan
        about = "; ".join(filter(None, [plan.hardware_source, "a bound" if plan.bound else None]))
        return f"{plan.hardware} ({about})" if about else str(plan.hardware)


def foreseen(block: Block) -> Iterator[Foreseen]:
    """Rows that were timed and have a prediction."""
    for entry in points_of(block):
        measured, plan = entry.seconds("transformer", "throughput"), entry.first.plan
        if measured is not None and plan is not None and plan.predicted_seconds:
            shown = Interval(value=measured.value * 1e3, low=measured.low * 1e3, high=measured.high * 1e3)
            yield Foreseen(entry=entry, plan=plan, measured=shown, predicted=plan.predicted_seconds * 1e3)


def measured_against_predicted(block: Block) -> Figure | None:
    """Whole rows against the prediction, and single steps on the roofline."""
    cells = [cell for cell in (_predicted_rows(block), _roofline(block)) if cell is not None]
    if not cells:
        return None
    hardware = next((row.device for row in foreseen(block)), "this device")
    return Figure(
        key="predicted", title="Measured against predicted", columns=2, cells=tuple(cells),
        legend=family_legend(block, [{"family": e.family, "valid": True} for e in block.entries if e.complete]),
        caption=f"The plan's roofline for {hardware}, with one efficiency for all methods. On the diagonal prediction and "
        "measurement agree; above it the row is slower than its work explains.",
    )  # fmt: skip


def _predicted_rows(block: Block) -> Plot | None:
    values = [
        {
            "row": label(row.entry), "family": row.entry.family, "predicted": row.predicted, "low": row.measured.low,
            "measured": row.measured.value, "high": row.measured.high, "quotient": row.quotient,
        }
        for row in foreseen(block)
    ]  # fmt: skip
    if not values:
        return None
    ends_of_line = [time for row in foreseen(block) for time in (row.predicted, row.measured.value)]
    low, high = min(ends_of_line) * 0.9, max(ends_of_line) * 1.1
    scale = {"type": "log", "domain": [low, high], "nice": False}
    x = axis("predicted", "predicted, ms", scale=scale)
    y = axis("measured", "measured, ms", scale=scale)
    layers: list[Spec] = [
        {
            "data": {"values": [{"predicted": low, "measured": low}, {"predicted": high, "measured": high}]},
            "mark": {"type": "line", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.5},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": x, "y": y,
                "color": colour("family", colours_of(block), values),
                "tooltip": [
                    {"field": "row"}, {"field": "predicted", "title": "predicted, ms", "format": ",.3f"},
                    {"field": "measured", "title": "measured, ms", "format": ",.3f"},
                    {"field": "quotient", "title": "measured / predicted", "format": ".2f"},
                ],
            },
        },
    ]  # fmt: skip
    return Plot(spec=chart(layers, values=values), title="Rows", alt="Measured against predicted time of every row")


def _roofline(block: Block) -> Plot | None:
    values = []
    for entry in lines_of(block):
        timing, plan = entry.first.timing, entry.first.plan
        if timing is None or timing.per_scale is None or plan is None:
            continue
        for step, seconds in zip(plan.steps, timing.per_scale.seconds, strict=False):
            if not step.flops or not step.moved_bytes or not step.predicted_seconds or not seconds:
                continue
            names = {"row": label(entry), "family": entry.family, "step": step_name(step)}
            about = {**names, "intensity": step.flops / step.moved_bytes}
            values.append({**about, "what": "measured", "rate": step.flops / seconds / 1e9})
            values.append({**about, "what": "predicted", "rate": step.flops / step.predicted_seconds / 1e9})
    if not values:
        return None
    x = axis("intensity", "FLOPs a byte moved", scale={"type": "log", "nice": False, "padding": 24})
    y = axis("rate", "GFLOP/s", scale={"type": "log", "nice": False, "padding": 24})
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.what == 'predicted'"}],
            "mark": {"type": "point", "shape": "diamond", "filled": False, "size": 70, "color": "currentColor"},
            "encoding": {"x": x, "y": y},
        },
        {
            "transform": [{"filter": "datum.what == 'measured'"}],
            "mark": {"type": "point", "filled": True, "size": 50, "opacity": 0.85},
            "encoding": {
                "x": x, "y": y,
                "color": {**colour("family", colours_of(block), values), "legend": None},
                "tooltip": [
                    {"field": "row"}, {"field": "step", "title": "scale"},
                    {"field": "rate", "title": "GFLOP/s", "format": ",.1f"},
                    {"field": "intensity", "title": "FLOPs a byte", "format": ".1f"},
                ],
            },
        },
    ]  # fmt: skip
    alt = "Roofline: rate against arithmetic intensity of every step, measured and predicted"
    return Plot(spec=chart(layers, values=values), title="Single steps on the roofline (diamonds: predicted)", alt=alt)


def _thinned(ordered: Sequence[_Sample]) -> Sequence[_Sample]:
    """A picture needs no more; the record keeps all."""
    last = len(ordered) - 1
    return ordered if last < MOST_TICKS else [ordered[i * last // (MOST_TICKS - 1)] for i in range(MOST_TICKS)]
