"""Frozen dataclasses to JSON and back, each key checked against its type: what records, plans and messages are written with."""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from varbench.base.by_identity import once
from varbench.errors import UserError

Kind = TypeVar("Kind")
Reader = Callable[[Any], Any]


class RecordError(UserError):
    """A file is not a record, or holds something that no record can; the message says where."""


class _Misfit(Exception):
    """What is wrong with a value. Where it lies is put together on the way out: values that fit, nearly all, pay nothing for
    it."""

    def __init__(self, wrong: str) -> None:
        super().__init__(wrong)
        self.wrong, self.path = wrong, ""

    def within(self, step: str) -> _Misfit:
        self.path = step + self.path
        return self


Decodings = dict[tuple[Reader, bytes], Any]
"""What was read of parts that several values have alike, by their type and their text."""

TextParts = dict[str, msgspec.Raw]
"""A JSON object whose values are the texts that they were."""


def encode(value: Any, path: str) -> Any:
    """What JSON can hold of a value; `path` names it in messages."""
    return _named(_encoded, value, path)


def encode_again(values: Iterable[Any]) -> list[dict[str, Any]]:
    """The same of values that were written or read before, so that all of them fit. What they share is one object in all of them,
    and must not be changed."""
    part = once(lambda item: msgspec.json.decode(msgspec.json.encode(item)))
    return [{name: part(item) for name, item in _parts(value).items()} for value in values]


def decode(kind: type[Kind], value: Any, path: str) -> Kind:
    """The value of this type that `encode` made JSON of; `RecordError` names the first key that does not fit."""
    reader: Reader = _decoder(kind)  # type: ignore[arg-type]  # a class of any kind can be a key
    found: Kind = _named(reader, value, path)
    return found


def decode_parts(kind: type[Kind], parts: TextParts, path: str, *, alike: Decodings) -> Kind:
    """The same of values that `alike` goes with, one after the other: parts whose texts are alike are read once, and are one
    object. So most of a text is not parsed at all."""
    found: Kind = _named(functools.partial(_decode_fields, kind, alike=alike), parts, path)
    return found


def _named(made: Reader, value: Any, path: str) -> Any:
    try:
        return made(value)
    except _Misfit as misfit:
        raise RecordError(f"{path}{misfit.path} {misfit.wrong}") from None


def _encoded(value: Any) -> Any:
    kind = type(value)
    if kind in (str, int, bool, types.NoneType):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Misfit(f"is {value}: a number that is not there is null, with its reason in `missing`")
        return value
    if isinstance(value, (tuple, list)):
        return list(value) if _all_as_they_are(value) else _each(_encoded, value)
    if isinstance(value, dict):
        return _by_name(_encoded, {str(name): item for name, item in value.items()})
    if dataclasses.is_dataclass(kind):
        return _by_name(_encoded, _parts(value))
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (int, str)):  # of a class of its own, such as torch's version
        return str(value) if isinstance(value, str) else int(value)
    raise _Misfit(f"holds a {kind.__name__}, which JSON cannot hold")


def _parts(value: Any) -> dict[str, Any]:
    """In the order of the class, whatever that of a file was."""
    kind: type = type(value)
    return {name: getattr(value, name) for name in _fields_of(kind)}


def _all_as_they_are(values: Any) -> bool:
    """Whether values are what JSON has too, told at once: most of a record are lists of many seconds or hashes."""
    kinds = set(map(type, values))
    return kinds <= {str, int, bool} or (kinds == {float} and all(map(math.isfinite, values)))


def _each(made: Reader, values: Any) -> list[Any]:
    found: list[Any] = []
    try:
        for value in values:
            found.append(made(value))
    except _Misfit as misfit:
        raise misfit.within(f"[{len(found)}]") from None
    return found


def _by_name(made: Reader, values: dict[Any, Any]) -> dict[Any, Any]:
    found = {}
    name: Any = None
    try:
        for name, value in values.items():
            found[name] = made(value)
    except _Misfit as misfit:
        raise misfit.within(f".{name}") from None
    return found


@functools.cache
def _fields_of(kind: type) -> dict[str, Reader]:
    """How each key is read."""
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    return {field.name: _decoder(hints[field.name]) for field in dataclasses.fields(kind)}


@functools.cache
def _needed(kind: type) -> frozenset[str]:
    """The keys that a file may not lack."""
    missing = dataclasses.MISSING
    given = (field.name for field in dataclasses.fields(kind) if field.default is field.default_factory is missing)
    return frozenset(given)


@functools.cache
def _decoder(kind: Any) -> Reader:
    """How values of a type are read. What a class holds is looked up when the first one is, since types may hold themselves."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        wanted = [item for item in inner if item is not type(None)]
        one = _decoder(wanted[0]) if len(wanted) == 1 else _plain(tuple(wanted))
        return one if len(wanted) == len(inner) else lambda value: None if value is None else one(value)
    if kind is Any:
        return lambda value: value
    if origin is typing.Literal:
        return _one_of(inner)
    if origin is tuple:
        return _many(_decoder(inner[0])) if inner[1:] == (...,) else _few(tuple, tuple(map(_decoder, inner)))
    if origin is dict:
        return _mapping(int if inner[0] is int else str, _decoder(inner[1]))
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return functools.partial(_decode_fields, kind)
    if issubclass(kind, tuple):  # with named places
        return _few(kind._make, tuple(map(_decoder, typing.get_type_hints(kind).values())), kind._fields)
    if issubclass(kind, StrEnum):
        one_of = _one_of(tuple(kind))
        return lambda value: kind(one_of(value))
    if kind is bytes:
        return lambda value: base64.b64decode(_expect(isinstance(value, str), "base64", value))
    return _number if kind is float else _plain((kind,))


def _one_of(known: tuple[Any, ...]) -> Reader:
    what = f"one of {', '.join(map(str, known))}"
    return lambda value: _expect(value in known, what, value)


def _many(one: Reader) -> Reader:
    """Lists of one scalar, and lists of such lists, are looked at as a whole: most of a record are seconds by round."""
    same = _SCALARS.get(one)
    within, length = _LISTED.get(one, (None, None))

    def decode_many(value: Any) -> tuple[Any, ...]:
        _expect(isinstance(value, list), "a list", value)
        kinds = set(map(type, value))
        if same is not None and kinds <= same:
            return tuple(value)
        if (
            within is not None
            and kinds <= {list}
            and (length is None or set(map(len, value)) <= {length})
            and set(map(type, itertools.chain.from_iterable(value))) <= within
        ):
            return tuple(map(tuple, value))
        return tuple(_each(one, value))

    if same is not None:
        _LISTED[decode_many] = same, None
    return decode_many


def _few(make: Reader, kinds: tuple[Reader, ...], names: tuple[str, ...] = ()) -> Reader:
    """So many values, each of a type of its own."""
    all_numbers = set(kinds) == {_number}

    def decode_few(value: Any) -> Any:
        _expect(isinstance(value, list) and len(value) == len(kinds), f"a list of {len(kinds)}", value)
        if all_numbers and set(map(type, value)) <= _NUMBERS:
            return make(value)
        found: list[Any] = []
        try:
            for one, item in zip(kinds, value, strict=True):
                found.append(one(item))
        except _Misfit as misfit:
            raise misfit.within(f".{names[len(found)]}" if names else f"[{len(found)}]") from None
        return make(found)

    if all_numbers and make is tuple:
        _LISTED[decode_few] = _NUMBERS, len(kinds)
    return decode_few


def _mapping(key: Callable[[str], Any], one: Reader) -> Reader:
    def decode_mapping(value: Any) -> dict[Any, Any]:
        found = _by_name(one, _expect(isinstance(value, dict), "an object", value))
        return {key(name): item for name, item in found.items()}

    return decode_mapping


def _decode_fields(kind: type, value: Any, alike: Decodings | None = None) -> Any:
    _expect(isinstance(value, dict), "an object", value)
    known, keys = _fields_of(kind), value.keys()
    whole = keys == known.keys()
    if not whole:
        if unknown := keys - known.keys():
            raise _Misfit(f"has unknown keys: {', '.join(sorted(unknown))}")
        if lost := _needed(kind) - keys:
            raise _Misfit(f"lacks keys: {', '.join(sorted(lost))}")
    found = {}
    name = ""
    try:
        for name, item in value.items():
            reader = known[name]
            found[name] = reader(item) if alike is None else _read_once(alike, reader, item)
    except _Misfit as misfit:
        raise misfit.within(f".{name}") from None
    if not whole or hasattr(kind, "__post_init__"):
        return kind(**found)
    # All there is: to set a frozen class's fields one by one takes as long as all the rest.
    made: Any = object.__new__(kind)
    vars(made).update(found)
    return made


def _read_once(alike: Decodings, reader: Reader, part: msgspec.Raw) -> Any:
    key = reader, bytes(part)
    if key not in alike:
        alike[key] = reader(msgspec.json.decode(key[1]))
    return alike[key]


def _number(value: Any) -> float:
    """A whole number stays one, so that what is read again has the digest of what was written."""
    if type(value) is float:
        return value
    found: float = _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value)
    return found


@functools.cache
def _plain(kinds: tuple[type, ...]) -> Reader:
    def decode_plain(value: Any) -> Any:
        if type(value) in kinds:
            return value
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        return _expect(fits, " or ".join(kind.__name__ for kind in kinds), value)

    return decode_plain


_NUMBERS = frozenset((float, int))
_SCALARS = {_number: _NUMBERS, _plain((str,)): frozenset((str,)), _plain((int,)): frozenset((int,))}
"""What each reader takes as it is."""
_LISTED: dict[Reader, tuple[frozenset[type], int | None]] = {}
"""What readers of lists of one scalar take, and how many each list has where that is fixed."""


def _expect(holds: bool, what: str, value: Any) -> Any:
    if not holds:
        raise _Misfit(f"should be {what}, and is {str(value)[:60]!r}")
    return value
