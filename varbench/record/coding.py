"""Frozen dataclasses to JSON and back, each key checked against its type: what records, plans and messages are written with."""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
import sys
import types
import typing
from enum import StrEnum
from typing import Any, TypeVar

from varbench.errors import UserError

Kind = TypeVar("Kind")


class RecordError(UserError):
    """A file is not a record, or holds something that no record can; the message says where."""


def encode(value: Any, path: str) -> Any:
    """What JSON can hold of a value; `path` names it in messages."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: encode(getattr(value, field.name), f"{path}.{field.name}") for field in fields}
    if isinstance(value, dict):
        return {str(name): encode(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{path} is {value}: a number that is not there is null, with its reason in `missing`")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise RecordError(f"{path} holds a {type(value).__name__}, which JSON cannot hold")


def decode(kind: type[Kind], value: Any, path: str) -> Kind:
    """The value of this type that `encode` made JSON of; `RecordError` names the first key that does not fit."""
    found: Kind = _decode(kind, value, path)
    return found


@functools.cache
def _fields_of(kind: type) -> dict[str, tuple[Any, bool]]:
    """Type of each key, and whether a file may lack it."""
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is not missing or field.default_factory is not missing)
        for field in dataclasses.fields(kind)
    }


def _decode(kind: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        wanted = [item for item in inner if item is not type(None)]
        if value is None and len(wanted) < len(inner):
            return None
        return _decode(wanted[0], value, path) if len(wanted) == 1 else _plain(value, tuple(wanted), path)
    if kind is Any:
        return value
    if origin is typing.Literal:
        _expect(value in inner, f"one of {', '.join(map(str, inner))}", value, path)
        return value
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, path)
        kinds = (inner[0],) * len(value) if inner[1:] == (...,) else inner
        _expect(len(kinds) == len(value), f"a list of {len(kinds)}", value, path)
        return tuple(
            _decode(one, item, f"{path}[{index}]") for index, (one, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, path)
        key = int if inner[0] is int else str
        return {key(name): _decode(inner[1], item, f"{path}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _decode_fields(kind, value, path)
    if issubclass(kind, tuple):  # with named places
        hints = typing.get_type_hints(kind)
        _expect(isinstance(value, list) and len(value) == len(hints), f"a list of {len(hints)}", value, path)
        return kind(
            *(_decode(hint, item, f"{path}.{name}") for (name, hint), item in zip(hints.items(), value, strict=True))
        )
    if issubclass(kind, StrEnum):
        _expect(value in list(kind), f"one of {', '.join(kind)}", value, path)
        return kind(value)
    if kind is bytes:
        _expect(isinstance(value, str), "base64", value, path)
        return base64.b64decode(value)
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, path)
        return float(value)
    return _plain(value, (kind,), path)


def _decode_fields(kind: type, value: Any, path: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, path)
    known = _fields_of(kind)
    if unknown := value.keys() - known.keys():
        raise RecordError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
    if lost := {name for name, (_, optional) in known.items() if not optional} - value.keys():
        raise RecordError(f"{path} lacks keys: {', '.join(sorted(lost))}")
    return kind(**{name: _decode(known[name][0], item, f"{path}.{name}") for name, item in value.items()})


def _plain(value: Any, kinds: tuple[type, ...], path: str) -> Any:
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    _expect(fits, " or ".join(kind.__name__ for kind in kinds), value, path)
    return value


def _expect(holds: bool, what: str, value: Any, path: str) -> None:
    if not holds:
        raise RecordError(f"{path} should be {what}, and is {str(value)[:60]!r}")
