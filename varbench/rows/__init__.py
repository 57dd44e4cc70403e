"""Rows: how they are written, which plugins they name, and the policies that these give."""

from varbench.rows.grammar import (
    ACCOUNTINGS,
    FULL,
    NOT_EXECUTED,
    Row,
    at_default_points,
    at_point,
    expand,
    of_study,
    resolve,
    without_parameters,
)

__all__ = [
    "ACCOUNTINGS",
    "FULL",
    "NOT_EXECUTED",
    "Row",
    "at_default_points",
    "at_point",
    "expand",
    "of_study",
    "resolve",
    "without_parameters",
]
