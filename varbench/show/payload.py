"""What the page's script needs: records, and charts as data, deflated into one string."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from varbench.base.by_identity import once
from varbench.record.frames import RAW_OF_TIMING
from varbench.show.charts import Spec

MOST_PAYLOAD = 800_000  # characters; above it raw samples stay in their files only
MOST_DEFLATED = 20  # times: seconds with fifteen digits shrink by half, records that repeat each other by more
SHARED = ("plan", "training", "model", "protocol", "environment", "provenance", "weights")


def packed(encoded: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]], specs: dict[str, Spec]) -> str:
    """What the script needs, deflated: page-sized sets go in whole, larger ones without raw samples and losses."""
    for trimmed in (False, True):
        places: dict[bytes, int] = {}
        place_of = {
            name: _places(places, left_out=("losses",) if trimmed and name == "training" else ()) for name in SHARED
        }
        records = [_shown_record(data, place_of, trimmed=trimmed) for data in encoded]
        data = {
            "records": records, "shared": [msgspec.Raw(text) for text in places], "entries": entries, "charts": specs,
            "names": SHARED, "trimmed": trimmed,
        }  # fmt: skip
        plain = msgspec.json.encode(data)
        if not trimmed and len(plain) > MOST_PAYLOAD * MOST_DEFLATED:
            continue
        text = base64.b64encode(zlib.compress(plain, 6)).decode()
        if len(text) <= MOST_PAYLOAD:
            break
    return text


def _places(places: dict[bytes, int], *, left_out: tuple[str, ...]) -> Callable[[Any], int | None]:
    """Of sections among those that rows have alike; many are one object in several records."""

    def place(section: Any) -> int | None:
        if section is None:
            return None
        shown = _without(left_out, section) if left_out else section
        return places.setdefault(msgspec.json.encode(shown), len(places))

    return once(place)


def _without(names: Collection[str], section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in section.items() if name not in names}


def _shown_record(
    data: dict[str, Any], place_of: Mapping[str, Callable[[Any], int | None]], *, trimmed: bool
) -> dict[str, Any]:
    """The record with its large sections replaced by their place among those that rows share."""
    shown = dict(data)
    if shown["samples"] is not None:
        shown["samples"] = {**shown["samples"], "png": None}  # it is on the page already
    if trimmed and shown["timing"] is not None:
        columns = [_without(("rounds",), column) for column in shown["timing"]["columns"]]
        shown["timing"] = {**_without(RAW_OF_TIMING, shown["timing"]), "columns": columns}
    return shown | {name: place(shown[name]) for name, place in place_of.items()}
