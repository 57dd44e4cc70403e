"""What others published, as data: it stands beside ours for the same model and setting, with its source and its grade."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varbench.record import Record


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published row. `figures` holds what was printed, under the names of `assets/published.json`."""

    method: str
    setting: str | None
    model: str
    figures: dict[str, Any]
    grade: str
    source: str

    def text(self) -> str:
        """The figures in the order of interest, e.g. `FID 2.12 (also printed: 2.15), 2.6x`."""
        parts = []
        for name, form in _FORMS.items():
            if (value := self.figures.get(name)) is not None:
                parts.append(form.format(value))
                if (other := self.figures.get(f"{name}_alternative")) is not None:
                    parts[-1] += f" (also printed: {other})"
        return ", ".join(parts)


_FORMS = {
    "fid": "FID {:.2f}",
    "fid_full": "FID at full depth {:.2f}",
    "fid_subnet": "FID of the subnet {:.2f}",
    "is": "IS {:g}",
    "speedup": "{:g}x",
    "latency_s": "{:.2f} s",
    "memory_mb": "{:,} MB",
    "kv_mb": "cache {:,} MB",
    "kv_saving": "cache saving {:.0%}",
    "flops_reduction": "FLOPs -{:.1%}",
}


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("varbench").joinpath("assets/published.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def published_rows() -> tuple[Published, ...]:
    """Everything that is known, in the order of the data file."""
    about = ("method", "setting", "model", "grade", "source")
    return tuple(
        Published(
            method=row["method"],
            setting=row.get("setting"),
            model=row["model"],
            figures={name: value for name, value in row.items() if name not in about},
            grade=row["grade"],
            source=row["source"],
        )
        for row in _data()["rows"]
    )


def published_for(record: Record) -> tuple[Published, ...]:
    """Published rows of the same method, model and setting as a record; compositions and parameters have none.

    A row matches by its point or its recipe; one printed for a recipe gives its figure for the full depth to the point
    `full` and its figure for the subnet to the others. Quick runs and plans of other parameters are not the paper's.
    """
    row = record.row
    if len(row.plugins) != 1 or row.params or row.study or record.protocol.quick:
        return ()
    # A point was printed for the method's own recipe, and a row names only another one.
    settings = {row.recipe} if row.named_recipe else {row.point, row.recipe}
    if row.denominator is not None:
        settings = {row.denominator}
    found = []
    for published in published_rows():
        if published.method != row.plugins[0].name or published.model != record.model.preset:
            continue
        if published.setting not in settings:
            continue
        other = "fid_subnet" if row.point == "full" else "fid_full"
        figures = {name: value for name, value in published.figures.items() if name != other}
        found.append(
            Published(
                method=published.method,
                setting=published.setting,
                model=published.model,
                figures=figures,
                grade=published.grade,
                source=published.source,
            )
        )
    return tuple(found)


def published_asymmetry() -> dict[str, Any]:
    """FID of the untrained full model with half its depth on one zone of scales, as printed."""
    found: dict[str, Any] = _data()["scale_depth_asymmetry"]
    return found
