"""Frozen dataclasses as plain JSON values, and back, each value checked against its type."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from enum import StrEnum
from typing import Any

from varbench.errors import UserError


class RecordError(UserError):
    """A file is not a readable record."""


def encode(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: encode(getattr(value, field.name), f"{path}.{field.name}") for field in fields}
    if isinstance(value, dict):
        return {str(name): encode(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{path} is {value}: a number that is not there is null, with its reason in `missing`")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise RecordError(f"{path} holds a {type(value).__name__}, which JSON cannot hold")


@functools.cache
def _fields_of(kind: type) -> dict[str, tuple[Any, bool]]:
    """Type of each key, and whether a file may lack it."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is not missing or field.default_factory is not missing)
        for field in dataclasses.fields(kind)
    }


def decode(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        inner = next(item for item in typing.get_args(kind) if item is not type(None))
        return None if value is None else decode(inner, value, path)
    if kind is Any:
        return value
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, path)
        inner = typing.get_args(kind)[0]
        return tuple(decode(inner, item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, path)
        inner = typing.get_args(kind)[1]
        return {name: decode(inner, item, f"{path}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        _expect(isinstance(value, dict), "an object", value, path)
        known = _fields_of(kind)
        if unknown := value.keys() - known.keys():
            raise RecordError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
        if lost := {name for name, (_, optional) in known.items() if not optional} - value.keys():
            raise RecordError(f"{path} lacks keys: {', '.join(sorted(lost))}")
        return kind(**{name: decode(known[name][0], item, f"{path}.{name}") for name, item in value.items()})
    if issubclass(kind, StrEnum):
        _expect(value in list(kind), f"one of {', '.join(kind)}", value, path)
        return kind(value)
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, path)
        return float(value)
    _expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), kind.__name__, value, path)
    return value


def _expect(holds: bool, what: str, value: Any, path: str) -> None:
    if not holds:
        raise RecordError(f"{path} should be {what}, and is {str(value)[:60]!r}")
