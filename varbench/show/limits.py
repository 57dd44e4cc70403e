"""The limits of `--fail-on`: how much worse a figure may get before a comparison fails."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from varbench.base.stats import Interval
from varbench.errors import UserError, did_you_mean

Outcome = Literal["improved", "regressed", "same", "not judged", "gone", "new"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of one row. `change` is relative for speed, latency, memory and state, a difference for scores."""

    row: str
    figure: str
    verdict: Outcome
    old: float | None
    new: float | None
    change: Interval | None
    unit: str  # `x` over the full model, `s`, `B` or the score's name
    relative: bool
    broken: str | None  # the limit of `--fail-on` that this breaks


@dataclass(frozen=True, kw_only=True)
class Limit:
    """`speed:5%` or `fid:0.2`: the worst change that is let pass."""

    figure: str
    worst: float
    relative: bool
    text: str


def parse_limits(text: str) -> tuple[Limit, ...]:
    """The limits of `--fail-on`; a share for speed, latency, memory and state, an absolute worsening for scores."""
    limits = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"([^:]+):(\d+(?:\.\d+)?)(%?)", part)
        if found is None:
            raise UserError(f"--fail-on {part!r} is not NAME:LIMIT, as in speed:5% or fid:0.2")
        share = found[3] == "%"
        worst = float(found[2]) / (100 if share else 1)
        limits.append(Limit(figure=found[1].strip().lower(), worst=worst, relative=share, text=part))
    return tuple(limits)


def with_limits(changes: list[Change], limits: tuple[Limit, ...]) -> list[Change]:
    """Marks what breaks a limit: shown to be worse, and by more than the limit. A validity lost breaks any."""
    known = {_slug(change.figure) for change in changes if change.change is not None}
    for limit in limits:
        if not any(_means(limit, figure) for figure in known):
            raise UserError(f"--fail-on names {limit.figure!r}, which no row has.{did_you_mean(limit.figure, known)}")
        if all(change.verdict == "not judged" for change in changes if _means(limit, _slug(change.figure))):
            raise UserError(
                f"--fail-on {limit.text}: nothing can be judged by it. A row's {limit.figure} is, beside the full model, where both "
                "sets timed it in more than one process, as --rounds 3 does and --quick does not"
            )
    marked = []
    for change in changes:
        broken = change.broken if limits else None
        for limit in limits:
            if change.change is None or not _means(limit, _slug(change.figure)):
                continue
            if limit.relative != change.relative:
                right = "a share, as in speed:5%" if change.relative else "a difference, as in fid:0.2"
                raise UserError(f"--fail-on {limit.text}: the limit of {change.figure} is {right}")
            # A speed of 1/1.05 is a loss of 5 %: the limit is on how much more time or memory is taken.
            worsening = 1 / (1 + change.change.value) - 1 if change.relative else -change.change.value
            if change.verdict == "regressed" and worsening > limit.worst:
                broken = limit.text
        marked.append(dataclasses.replace(change, broken=broken))
    return marked


def _slug(figure: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", figure.lower()).strip("-")


def _means(limit: Limit, figure: str) -> bool:
    """`fid` stands for the Fréchet distance, by whatever features it was taken; all else is named as in the table."""
    if limit.figure == "fid":
        return figure.startswith(("fid", "fd-", "fr-chet"))
    return figure == _slug(limit.figure)
