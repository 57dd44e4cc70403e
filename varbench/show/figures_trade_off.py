"""Figures of what is bought and what it costs: quality against speed and against memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from varbench.record import PlanSummary, Score
from varbench.show import formatting, labels
from varbench.show.charts import INVALID, Figure, Plot, Spec, Swatch, axis, chart, colour
from varbench.show.drawn_rows import MOST_POINTS, colours_of, family_legend, label, points_of
from varbench.show.entries import Block, Entry, score_label

MOST_LABELS = dict(zip(labels.RANGES, (6, 10, 16), strict=True))
LOG_FROM = 10  # scores that differ by this factor are drawn on a log scale: the good ones are not all one blot


def quality_against_speed(block: Block) -> Figure | None:
    points = []
    for entry in points_of(block):
        quality, speedup = _quality(entry, block), entry.speedups.get("lossless")
        if quality is not None and speedup is not None:
            span = {"x": speedup.value, "x_low": speedup.low, "x_high": speedup.high}
            points.append({**_point(entry, block), **span, "x_text": f"{speedup.value:.2f}x"})
    if len(points) < 2:
        return None
    x_title = "speedup over the full model (further right is faster)"
    caption = (
        f"Transformer, batch {block.conditions['batch']}. Bars are 95 % intervals; the dashed line is the Pareto frontier of the "
        "valid rows."
    )
    band = None
    if block.itself is not None:
        band = (block.itself.low, block.itself.high)
        caption += " The grey band is the full model measured against itself."
    spec = _trade_off(points, block, x_title, more_is_better_x=True, height=380, band=band)
    return Figure(
        key="quality-speed",
        title="Quality against speed",
        caption=caption + _floor_caption(block) + _cut(block),
        cells=(Plot(spec=spec, alt=f"Scatter plot of {_score_name(block)} against speedup for {len(points)} rows"),),
        legend=family_legend(block, points),
    )


def quality_against_memory(block: Block) -> Figure | None:
    cells = []
    legend: tuple[Swatch, ...] = ()
    for key, title in (("state_peak_bytes", "largest state across scales"), ("peak_bytes", "peak memory")):
        points = []
        for entry in points_of(block):
            value = entry.memory(key)
            if _quality(entry, block) is not None and value is not None:
                points.append(_exact_point(entry, block, value / (1 << 20), formatting.size(value)))
        if len(points) > 1:
            spec = _trade_off(points, block, f"{title}, MiB (further left is less)", more_is_better_x=False)
            alt = f"Scatter plot of {_score_name(block)} against {title} for {len(points)} rows"
            cells.append(Plot(spec=spec, alt=alt, title=title.capitalize()))
            legend = family_legend(block, points)
    if not cells:
        return None
    return Figure(
        key="quality-memory", title="Quality against memory", columns=2, cells=tuple(cells), legend=legend,
        caption="State is what lives across scales: caches and whatever a method keeps. Peak memory adds weights and "
        "activations. The dashed line is the Pareto frontier of the valid rows." + _floor_caption(block) + _cut(block),
    )  # fmt: skip


def quality_against_cache(block: Block) -> Figure | None:
    """The full model and rows that compute the same and keep less of it, in the two ways in which papers count what is kept."""
    full = block.full["lossless"].first.plan if "lossless" in block.full else None
    if full is None or full.token_share is None or not (whole := _kept_bytes(full)):
        return None
    found = []
    for entry in points_of(block):
        plan = entry.first.plan
        if plan is None or _quality(entry, block) is None or entry.first.protocol.accounting != "lossless":
            continue
        share = _kept_bytes(plan) / whole
        if entry.is_full or (share < 1 and _computed(plan) == _computed(full)):
            found.append((entry, share))
    if len(found) < 3:
        return None
    cells: list[Plot] = []
    points: list[dict[str, Any]] = []
    for title, of_whole in (("of what any step reads", 1.0), ("of all tokens", full.token_share)):
        points = []
        for entry, share in found:
            percent = 100 * of_whole * share
            points.append(_exact_point(entry, block, percent, f"{percent:.0f} % {title}"))
        spec = _trade_off(points, block, f"kept keys and values, % {title}", more_is_better_x=False)
        alt = f"Scatter plot of {_score_name(block)} against the share of keys and values that is kept, {title}, for {len(points)} rows"
        cells.append(Plot(spec=spec, alt=alt, title=title.capitalize()))
    return Figure(
        key="quality-cache", title="Quality against kept keys and values", columns=2, cells=tuple(cells),
        legend=family_legend(block, points),
        caption="Rows that compute all layers and tokens and keep less: the most bytes that stay after any step. Left: of what "
        "the full model keeps. Right: of the keys and values of all tokens, as papers count that keep the last scale's too, which "
        f"no step reads: the full model stands at {full.token_share:.0%} there." + _cut(block),
    )  # fmt: skip


def _kept_bytes(plan: PlanSummary) -> int:
    return max((step.state_after_bytes or 0 for step in plan.steps), default=0)


def _computed(plan: PlanSummary) -> list[object]:
    """What a plan computes, whatever it reads and keeps."""
    return [
        (
            step.scales,
            step.backbone,
            step.branches,
            [(layer, call.attention_tokens, call.ffn_tokens) for call in step.calls for layer in call.layers],
        )
        for step in plan.steps
    ]


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


@dataclass(frozen=True, kw_only=True)
class _Span:
    """The range of an axis. It is set here and not by the chart, so that the place of each point is known."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Iterable[float], *, log: bool = False) -> _Span:
        found = list(values)
        low, high = min(found), max(found)
        if log and low > 0 and high / low >= LOG_FROM:
            return cls(low=low / 1.25, high=high * 1.25, log=True)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low=low - margin, high=high + margin)

    @property
    def scale(self) -> Spec:
        return {"domain": [self.low, self.high], "nice": False, **({"type": "log"} if self.log else {})}

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _trade_off(
    points: list[dict[str, Any]],
    block: Block,
    x_title: str,
    *,
    more_is_better_x: bool,
    height: int = 320,
    band: tuple[float, float] | None = None,
) -> Spec:
    """A scatter plot of the headline score over `x`, with the frontier and the names; `band` is greyed."""
    headline = block.headline
    assert headline is not None
    floors = [{"y": floor.value} for floor in floors_of(block).values() if floor.value is not None]
    # Ratios that are far apart; bytes and shares have a zero that says something.
    across = _Span.of(
        [*(band or ()), *(point[end] for point in points for end in ("x_low", "x_high"))], log=more_is_better_x
    )
    upward = _Span.of(
        [*(floor["y"] for floor in floors), *(point[end] for point in points for end in ("y_low", "y_high"))], log=True
    )
    y_title = f"{score_label(headline)} ({headline.better} is better{', log scale' if upward.log else ''})"
    valid = [point for point in points if point["valid"]]
    best = frontier(valid, more_is_better_x=more_is_better_x, more_is_better_y=headline.better == "higher")
    x_words = f"{x_title[:-1]}, log scale)" if across.log and x_title.endswith(")") else x_title
    x, y = axis("x", x_words, scale=across.scale), axis("y", y_title, scale=upward.scale)
    # A method listed at (x, y) also serves whoever asks for less; the steps run towards the worse side of x.
    step = "step-before" if more_is_better_x else "step-after"
    family = colour("family", colours_of(block), valid)
    tint = {"condition": {"test": "datum.valid", **family}, "value": INVALID}
    layers: list[Spec] = [
        {
            "data": {"values": [{"x_low": band[0], "x_high": band[1]}] if band else []},
            "mark": {"type": "rect", "color": "currentColor", "opacity": 0.08},
            "encoding": {"x": {**x, "field": "x_low"}, "x2": {"field": "x_high"}},
        },
        {
            "data": {"values": floors}, "encoding": {"y": y},
            "mark": {"type": "rule", "strokeDash": [1, 3], "color": "currentColor", "opacity": 0.6},
        },
        {
            "data": {"values": best}, "encoding": {"x": x, "y": y, "order": {"field": "x"}},
            "mark": {"type": "line", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.55, "interpolate": step},
        },
        {
            "transform": [{"filter": "datum.valid"}],
            "mark": {"type": "line", "opacity": 0.35, "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y, "color": family, "detail": {"field": "curve"}, "order": {"field": "x"}},
        },
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": x, "y": {**y, "field": "y_low"}, "y2": {"field": "y_high"}, "color": tint},
        },
        {
            "transform": [{"filter": "datum.x_low < datum.x_high"}],  # bytes have no interval
            "mark": {"type": "rule", "opacity": 0.6, "aria": False},
            "encoding": {"x": {**x, "field": "x_low"}, "x2": {"field": "x_high"}, "y": y, "color": tint},
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
        *_name_layers(_by_importance(points, best), across, upward, height, x=x, y=y),
    ]  # fmt: skip
    return chart([layer for layer in layers if layer.get("data", {}).get("values", True)], values=points, height=height)


def _by_importance(points: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The order in which names are placed: the frontier, what is not valid, the rest as in the table."""
    doubted = [point for point in points if not point["valid"]]
    return [*best, *doubted, *(point for point in points if point["valid"] and point not in best)]


def _name_layers(
    points: Sequence[dict[str, Any]], across: _Span, upward: _Span, height: int, *, x: Spec, y: Spec
) -> list[Spec]:
    """The names as layers: for every range of widths its own places, of which the chart shows those for its width."""
    spots = [
        labels.Spot(name=point["row"], x=across.share(point["x"]), y=height * (1 - upward.share(point["y"])))
        for point in points
    ]
    values = []
    for least, most in labels.RANGES:
        for name in labels.place(spots, widths=(least, most), height=height, most=MOST_LABELS[least, most]):
            point = points[name.spot]
            about = {
                "x": point["x"],
                "y": point["y"],
                "name": name.text,
                "faint": not point["valid"],
                "line": name.line,
            }
            values.append({**about, "least": least, "most": most, "dx": name.dx, "dy": name.dy, "align": name.align})
    here = {"filter": "datum.least <= width && width < datum.most"}
    layers: list[Spec] = [
        {
            "transform": [here, {"filter": "datum.line"}],
            "mark": {
                "type": "rule", "color": "currentColor", "opacity": 0.35, "strokeWidth": 0.75, "aria": False,
                "x2Offset": {"expr": "datum.dx"}, "y2Offset": {"expr": "datum.dy"},
            },
            "encoding": {"x": x, "y": y, "x2": {"field": "x"}, "y2": {"field": "y"}},
        },
        {
            "transform": [here],
            "mark": {
                "type": "text", "aria": False, "baseline": "middle", "align": {"expr": "datum.align"},
                "dx": {"expr": "datum.dx"}, "dy": {"expr": "datum.dy"},
            },
            "encoding": {
                "x": x, "y": y, "text": {"field": "name"},
                "opacity": {"condition": {"test": "datum.faint", "value": 0.55}, "value": 1},
            },
        },
    ]  # fmt: skip
    return [{"data": {"values": values}, **layer} for layer in layers]


def floors_of(block: Block) -> dict[str, Score]:
    """Floors of the headline score by name, from the first row that has them."""
    headline = block.headline
    for entry in block.entries:
        quality = entry.first.quality
        if headline is not None and quality is not None and quality.floors:
            names = {"real": "real against real", "reconstruction": "reconstruction"}
            return {
                names.get(name, name): score
                for name, score in quality.floors.items()
                if score.name == headline.name and score.value is not None
            }
    return {}


def _point(entry: Entry, block: Block) -> dict[str, Any]:
    quality = _quality(entry, block)
    return {
        "row": label(entry), "family": entry.family, "curve": entry.first.row.curve,
        "y": quality.value, "y_low": quality.low, "y_high": quality.high,
        "y_text": formatting.with_interval(quality), "valid": entry.believable, "note": entry.trouble or "valid",
    }  # fmt: skip


def _exact_point(entry: Entry, block: Block, x: float, text: str) -> dict[str, Any]:
    """Of what has no interval."""
    return {**_point(entry, block), "x": x, "x_low": x, "x_high": x, "x_text": text}


def _quality(entry: Entry, block: Block) -> Any:
    return entry.score(block.headline.name) if block.headline is not None else None


def _score_name(block: Block) -> str:
    return score_label(block.headline) if block.headline is not None else "quality"


def _floor_caption(block: Block) -> str:
    floors = [f"{name} {formatting.number(score.value or 0)}" for name, score in floors_of(block).items()]
    if not floors:
        return ""
    return f" Dotted: what no generator gets below at this sample size ({', '.join(floors)})."


def _cut(block: Block) -> str:
    total = len(block.entries)
    return f" The first {MOST_POINTS} of {total} rows are drawn." if total > MOST_POINTS else ""
