"""Frozen dataclasses to JSON and back, each key checked against its type: what records, plans and messages are written with."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
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


Decodings = dict[tuple[Any, bytes], Any]
"""What was read of parts that several values have alike, by their type and their text."""

_AT = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$(.*)`)?", re.DOTALL)
"""What the library says is wrong, and where."""

TextParts = dict[str, msgspec.Raw]
"""A JSON object whose values are the texts that they were."""


def encode(value: Any, path: str) -> Any:
    """What JSON can hold of a value; `path` names it in messages."""
    try:
        return _encoded(value)
    except _Misfit as misfit:
        raise RecordError(f"{path}{misfit.path} {misfit.wrong}") from None


def encode_again(values: Iterable[Any]) -> list[dict[str, Any]]:
    """The same of values that were written or read before, so that all of them fit. What they share is one object in all of them,
    and must not be changed."""
    part = once(lambda item: msgspec.json.decode(msgspec.json.encode(item)))
    return [{name: part(item) for name, item in _parts(value).items()} for value in values]


def decode(kind: type[Kind], value: Any, path: str) -> Kind:
    """The value of this type that `encode` made JSON of; `RecordError` says where the first thing that does not fit lies: by keys and
    places, and among the entries of a dictionary by `[...]`."""
    with _named(path):
        key: Any = kind  # a class of any kind can be one
        read: Kind = _maker(key)(msgspec.convert(value, _read_as(key), str_keys=True))
    return read


def decode_parts(kind: type[Kind], parts: TextParts, path: str, *, alike: Decodings) -> Kind:
    """The same of values that `alike` goes with, one after the other: parts whose texts are alike are read once, and are one
    object. So most of a text is not parsed at all."""
    whole: Any = kind  # as a key
    with _named(path):
        msgspec.convert(dict.fromkeys(parts), _keys_of(whole))
    kinds, found = _kinds_of(whole), {}
    for name, part in parts.items():
        key = kinds[name], bytes(part)
        if key not in alike:
            with _named(f"{path}.{name}"):
                alike[key] = _maker(key[0])(_decoder(key[0]).decode(part))
        found[name] = alike[key]
    return kind(**found)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        wrong, where = _AT.fullmatch(str(error)).groups()  # type: ignore[union-attr]  # it fits any text
        raise RecordError(f"{path}{where or ''}: {wrong}") from None


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
    return {name: getattr(value, name) for name in _kinds_of(kind)}


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
def _kinds_of(kind: type) -> dict[str, Any]:
    """The type of each key, or of each place that has a name."""
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else hints
    return {name: hints[name] for name in names}


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_read_as(kind))


@functools.cache
def _keys_of(kind: type) -> type[msgspec.Struct]:
    """A class with the same keys, of anything."""
    return _struct(kind, dict.fromkeys(_kinds_of(kind), Any))


@functools.cache
def _read_as(kind: Any) -> Any:
    """What the library reads in a type's place: keys that a class does not know are refused, and a whole number stays one, so that
    what is read again has the digest of what was written. No class may hold itself."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is float:
        return int | float
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _struct(kind, {name: _read_as(item) for name, item in _kinds_of(kind).items()})
    if _has_named_places(kind):
        return types.GenericAlias(tuple, tuple(map(_read_as, _kinds_of(kind).values())))
    if origin in _UNIONS:
        return functools.reduce(operator.or_, map(_read_as, inner))
    if origin in (tuple, dict):
        return origin[tuple(item if item is ... else _read_as(item) for item in inner)]
    return kind


def _struct(kind: type, kinds: dict[str, Any]) -> type[msgspec.Struct]:
    none = dataclasses.MISSING
    needed = {field.name for field in dataclasses.fields(kind) if field.default is field.default_factory is none}
    keys = [
        (name, item) if name in needed else (name, item | msgspec.UnsetType, msgspec.UNSET)
        for name, item in kinds.items()
    ]
    return msgspec.defstruct(kind.__name__, keys, kw_only=True, forbid_unknown_fields=True, gc=False)


def _as_it_is(read: Any) -> Any:
    return read


@functools.cache
def _maker(kind: Any) -> Reader:
    """What makes a value of a type of what the library has read in its place."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return functools.partial(_filled, kind)
    if _has_named_places(kind):
        return _made_by_place(kind._make, tuple(_kinds_of(kind).values()))
    makers = [_maker(item) for item in inner] if origin in (*_UNIONS, tuple, dict) else []
    deeper = [make for make in makers if make is not _as_it_is]
    if not deeper:
        return _as_it_is
    if origin in _UNIONS:
        (one,) = deeper
        return lambda read: None if read is None else one(read)
    if origin is dict:
        return lambda read: {name: makers[1](item) for name, item in read.items()}
    if inner[1:] == (...,):
        return lambda read: tuple(map(makers[0], read))
    return _made_by_place(tuple, inner)


def _made_by_place(make: Reader, kinds: tuple[Any, ...]) -> Reader:
    makers = tuple(map(_maker, kinds))
    return lambda read: make(one(item) for one, item in zip(makers, read, strict=True))


def _filled(kind: type, read: msgspec.Struct) -> Any:
    every = msgspec.structs.asdict(read)
    found = {name: item for name, item in every.items() if item is not msgspec.UNSET}
    for name, make in _makers_of(kind):
        if name in found:
            found[name] = make(found[name])
    if len(found) < len(every) or hasattr(kind, "__post_init__"):
        return kind(**found)
    # To set a frozen class's fields one by one takes as long as all the rest.
    made: Any = object.__new__(kind)
    vars(made).update(found)
    return made


@functools.cache
def _makers_of(kind: type) -> tuple[tuple[str, Reader], ...]:
    """The keys that hold more than what the library reads."""
    return tuple((name, make) for name, item in _kinds_of(kind).items() if (make := _maker(item)) is not _as_it_is)


def _has_named_places(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


_UNIONS = (types.UnionType, typing.Union)
