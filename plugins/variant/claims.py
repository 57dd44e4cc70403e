"""The paper's claims as pairs of rows: progressive training against constant probabilities, and where depth matters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from varbench.record import Record
from varbench.record.sections import Section
from varbench.show.claims import Claim, judged

TITLE = "Which of VARiant's claims hold here"
RARELY, HALF, ALWAYS = "fixed_ratio@p01", "fixed_ratio@p05", "fixed_ratio@p10"


def sections(plugin: str, records: Sequence[Record]) -> list[Section]:
    """The claims on the rows of `plugin`, the name that the method goes by here."""
    return judged(TITLE, tuple(_claims(plugin, dict.fromkeys(record.row.row for record in records))), records)


def _claims(ours: str, names: dict[str, None]) -> Iterator[Claim]:
    found = [match[1] for name in names if (match := re.fullmatch(rf"{re.escape(ours)}@(d[0-9]+)", name))]
    depths = sorted(found, key=lambda point: -int(point[1:]))
    subnets = [(f"{ours}@{d}", f"{HALF}/{d}") for d in depths]
    yield from _each("progressive training gives better subnets than p = 0.5", subnets)
    yield from _each("… and a better full model than p = 0.5", [(f"{ours}@full", f"{HALF}/full")])
    yield from _each("p = 0.1 spares the full model more than p = 1", [(f"{RARELY}/full", f"{ALWAYS}/full")])
    subnets = [(f"{ALWAYS}/{d}", f"{RARELY}/{d}") for d in depths]
    yield from _each("… and p = 1 gives better subnets than p = 0.1", subnets)
    full = [(f"{ours}@full", f"{RARELY}/full")]
    yield from _each("progressive training spares the full model as p = 0.1 does", full)
    yield from _each("… and gives subnets as good as p = 1 does", [(f"{ours}@{d}", f"{ALWAYS}/{d}") for d in depths])
    full = [(f"{ours}@full", "full_var@continued")]
    yield from _each("the shared full model is as good as one trained alone for as long", full)
    alone = [(f"{ours}@{d}", f"smaller@alone_{d}") for d in depths]
    yield from _each("… and shared subnets as good as their layers trained alone", alone)
    subnets = [(f"{ours}@{d}", f"{ours}@untrained/{d}") for d in depths]
    yield from _each("training is what makes the subnets", subnets)
    for (early, first), (late, second) in itertools.pairwise(_zones(ours, names)):
        yield Claim(text=f"fewer layers cost less on scales {second} than on {first}", better=late, worse=early)


def _each(text: str, pairs: list[tuple[str, str]]) -> Iterator[Claim]:
    return (Claim(text=text, better=better, worse=worse) for better, worse in pairs)


def _zones(ours: str, names: dict[str, None]) -> list[tuple[str, str]]:
    """Rows of the untrained model with a zone of fewer layers, and the zone, coarse scales first."""
    pattern = rf"{re.escape(ours)}@untrained/d[0-9]+:zone=(([0-9]+)-[0-9]+)"
    found = [(int(zone[2]), name, zone[1]) for name in names if (zone := re.fullmatch(pattern, name))]
    return [(name, zone) for _, name, zone in sorted(found)]
