"""Files of older schema versions, brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from varbench.base.stats import median


def _options_in_full(old: dict[str, Any]) -> dict[str, Any]:
    """Version 1 kept some of the options, and the calls and seconds of a round hung on preset and `--quick` alone."""
    protocol = dict(old["protocol"])
    short = protocol.get("quick", False) or old["model"]["preset"] == "tiny"
    asked = {
        "plugins": old["row"]["row"],
        "model": old["model"]["preset"],
        "weights": "random" if old["model"]["weights"] == "random" else None,
        "device": "cpu" if old["environment"]["device"] == "cpu" else "cuda",
        "steps": protocol.pop("recipe_steps", None),
        "count": 3 if short else 6,
        "seconds": 0.2 if short else 3.0,
    }
    return {**old, "protocol": {**asked, **protocol}}


def _neighbours_beside(old: dict[str, Any]) -> dict[str, Any]:
    """Version 2 timed the full model in turn with the row, but not call by call: each of a round's calls gets its median.

    It timed for so many seconds, precise or not.
    """
    protocol = dict(old["protocol"])
    if "seconds" in protocol:
        protocol["budget"] = protocol.pop("seconds")
    old = {**old, "protocol": protocol}
    if old.get("timing") is None:
        return old
    timing = dict(old["timing"])
    anchor = timing.pop("anchor", None)
    for gone in ("aa_floor", "depth_switch_seconds"):
        timing.pop(gone, None)
    columns = []
    for column in timing["columns"]:
        timed = (column["column"], column["regime"]) == ("transformer", "throughput")
        if anchor is not None and timed and len(anchor) == len(column["rounds"]):
            pairs = zip(anchor, column["rounds"], strict=True)
            column = {**column, "beside": [[median(full)] * len(own) for full, own in pairs]}
        columns.append(column)
    return {**old, "timing": {**timing, "columns": columns}}


def _without_minimum(old: dict[str, Any]) -> dict[str, Any]:
    """Version 2 had `plan.minimum` for plans that change within a call, which nothing ever made."""
    if old.get("plan") is None:
        return old
    return {**old, "plan": {key: value for key, value in old["plan"].items() if key != "minimum"}}


def _without_sampler(old: dict[str, Any]) -> dict[str, Any]:
    """Version 3 had `protocol.sampler` for a method's own sampler, which none can have."""
    return {**old, "protocol": {key: value for key, value in old["protocol"].items() if key != "sampler"}}


def _without_wall_median(old: dict[str, Any]) -> dict[str, Any]:
    """Version 4 had `timing.columns[].wall_median`, which nothing ever filled."""
    if old.get("timing") is None:
        return old
    columns = [
        {key: value for key, value in column.items() if key != "wall_median"} for column in old["timing"]["columns"]
    ]
    return {**old, "timing": {**old["timing"], "columns": columns}}


# From schema version to a function that turns a file of that version into one of the next. Keys that are merely
# new need none: a missing key that may be null reads as null.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _options_in_full,
    2: lambda old: _neighbours_beside(_without_minimum(old)),
    3: _without_sampler,
    4: _without_wall_median,
}
