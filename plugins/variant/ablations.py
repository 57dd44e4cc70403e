"""What each choice of the method buys: rows with one of the published choices changed, beside the rows as published."""

from __future__ import annotations

import re
from collections.abc import Sequence

from varbench.record import Record
from varbench.record.sections import Section
from varbench.show.claims import choices

from .story import CHOICES

WORDS = {
    "spread=prefix": "the first layers in the place of equidistant ones",
    "nested=true": "each smaller set of layers from within the larger",
    "draw=": "subnet steps train {} alone",
    "targets=full": "subnets learn what the full model says",
    "phases=reversed": "subnets first, the full model last",
    "bridge=0": "no bridge: subnets at every scale",
    "bridge=": "a bridge of {}",
}
"""Of a parameter as it is written in a row; one that ends in `=` stands for every value."""


def sections(ours: str, records: Sequence[Record]) -> list[Section]:
    """A table of the rows of the study that are there: by what was changed, the score at each point."""
    unchanged: dict[str, str] = {}
    changed: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(record.row.row for record in records):
        if found := re.fullmatch(rf"{re.escape(ours)}@(full|d[0-9]+)(?::([a-z]+=[a-z0-9]+))?", name):
            point, how = found[1], found[2]
            if how is None:
                unchanged[point] = name
            elif text := _words(how):
                changed.setdefault(text, {})[point] = name
    return choices(CHOICES, unchanged, changed, records)


def _words(how: str) -> str | None:
    key, _, value = how.partition("=")
    return WORDS.get(how) or WORDS.get(f"{key}=", "").format(value) or None
