"""Rows of which one stands for the other: they run the same plan, and their policies have nothing by which to answer otherwise.

Recipes of one method are such rows as a rule: they differ in weights, which in the kit are random.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from varbench.check.subject import PlannedRow, UnderTest

_ATOMS = (bool, int, float, str, bytes, range, type(None), torch.dtype)
_PLAIN = type("_Plain", (), {}).__basicsize__
"""Of an object that holds no more than its attributes."""


def distinct(subjects: Sequence[UnderTest]) -> Iterator[UnderTest]:
    """One row of each plan. Of rows whose policies are asked within the loop all run but for twins, and of those that replace it all."""
    ran: list[PlannedRow] = []
    for subject in subjects:
        if not isinstance(subject, PlannedRow):
            yield subject
            continue
        same = [other for other in ran if other.plan.digest == subject.plan.digest]
        if not same or (subject.plan.asks and not any(twins(subject, other) for other in same)):
            yield subject
        ran.append(subject)


def twins(one: PlannedRow, other: PlannedRow) -> bool:
    mine, its = (replace(subject.row.policies, name="") for subject in (one, other))
    return one.pipe is other.pipe and alike(mine, its)


def alike(one: object, other: object, _meanwhile: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Whether two things are of one class and the same in all they hold. Of what cannot be seen into, only the same one is."""
    if one is other or (id(one), id(other)) in _meanwhile:
        return True
    if type(one) is not type(other):
        return False
    inner = partial(alike, _meanwhile=_meanwhile | {(id(one), id(other))})
    if isinstance(one, _ATOMS):
        return bool(one == other)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and not one.dtype.hasobject and np.array_equal(one, other)
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__func__ is other.__func__ and inner(one.__self__, other.__self__)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return _is_plain(one) and len(one) == len(other) and all(map(inner, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return _is_plain(one) and one.keys() == other.keys() and all(inner(one[key], other[key]) for key in one)
    return _is_plain(one) and inner(vars(one), vars(other))


def _is_plain(thing: object) -> bool:
    """Whether it is all that can be seen of it."""
    kind = type(thing)
    return kind in (list, tuple, dict) or (kind.__basicsize__ == _PLAIN and kind.__dictoffset__ != 0)
