"""What varbench raises for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One line that says what is wrong, where, and what to do next. The command line prints it and exits with 2."""


class PlanError(UserError):
    """The policies of a row cannot be compiled into a plan, or a plan asks for what the engine cannot do."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit the model."""


class DiskFullError(UserError, OSError):
    """There is no room for a file; what was there before is unchanged."""


class WrongOutputError(Exception):
    """A method gave too few images, NaN, or a wrong shape."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean X?` for the nearest known name, and else the list of what is known; empty when nothing is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}." if known else ""
