"""Rows: how they are written, which plugins they name, and the policies that these give."""

from varbench.rows.grammar import (
    FULL,
    UPSTREAM,
    Attempt,
    Refused,
    Row,
    at_default_points,
    at_point,
    attempt,
    every_settings,
    expand,
    located,
    of_study,
    pieces_of_study,
    resolve,
    with_parameters,
    without_parameters,
    without_transforms,
)
from varbench.rows.parts import ACCOUNTINGS, Value

__all__ = [
    "ACCOUNTINGS",
    "FULL",
    "UPSTREAM",
    "Attempt",
    "Refused",
    "Row",
    "Value",
    "at_default_points",
    "at_point",
    "attempt",
    "every_settings",
    "expand",
    "located",
    "of_study",
    "pieces_of_study",
    "resolve",
    "with_parameters",
    "without_parameters",
    "without_transforms",
]
