"""The forms that options take: arguments, keys of a TOML file, a hash, conditions, a command line. All are read off the
dataclass that is given, so that a field more is an option more, everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from varbench.base.hashing import path_hash
from varbench.errors import UserError, did_you_mean
from varbench.plan import presets
from varbench.record.options import Option, Options, asked, options_of

_WANTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def add_arguments(parser: argparse.ArgumentParser, *names: str, kind: type[Options] = Options, **docs: str) -> None:
    """The options of these names, or all, as arguments; `docs` are other words for what one does in this command."""
    for name, one in asked(kind).items():
        if names and name not in names:
            continue
        shape: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if one.holds is not bool:
            shape = {"type": one.holds, "metavar": one.metavar, **({"action": "append"} if one.many else {})}
        parser.add_argument(one.flag, dest=name, help=docs.get(name, _help(one)), default=None, **shape)


def _help(one: Option) -> str:
    default = one.default if one.absent is None else one.absent
    if default is False or default in ("", ()):
        return one.doc
    return f"{one.doc}; default: {default:g}" if isinstance(default, float) else f"{one.doc}; default: {default}"


def given_in(args: argparse.Namespace, *names: str, kind: type[Options] = Options) -> dict[str, Any]:
    """The options of these names, or all, that the command line gives, each checked."""
    written = {name: getattr(args, name, None) for name in names or asked(kind)}
    known = asked(kind)
    return {name: checked(known[name], value, known[name].flag) for name, value in written.items() if value is not None}


def read_config(path: Path, *, kind: type[Options] = Options) -> dict[str, Any]:
    """The options that a TOML file gives, at its top or under `[run]`, each checked; `-` and `_` are alike in its keys."""
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error})") from error
    known, found = asked(kind), {}
    table = data.pop("run", {})
    for written, value in [*data.items(), *(table.items() if isinstance(table, dict) else [("run", table)])]:
        key = written.replace("-", "_")
        if key not in known:
            raise UserError(f"{path}: no key {written!r}.{did_you_mean(key, known)}")
        if key == "plugins" and isinstance(value, list):
            value = ",".join(map(str, value))
        found[key] = checked(known[key], value, f"{path}: {written}")
    return found


def checked(one: Option, value: Any, written: str) -> Any:
    """A value as the option holds it, or `UserError`; `written` is what the user calls the option."""
    if one.many:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{written} is {value!r}; give a list of texts")
        return tuple(_checked_single(one, item, written) for item in value)
    return _checked_single(one, value, written)


def _checked_single(one: Option, value: Any, written: str) -> Any:
    if one.holds is float and _is_a(int, value):
        value = float(value)
    if not _is_a(one.holds, value):
        raise UserError(f"{written} is {value!r}; give {_WANTED[one.holds]}")
    if one.choices and value not in one.choices:
        raise UserError(f"{written} {value!r} is unknown.{did_you_mean(value, one.choices)}")
    if one.form is not None and not re.fullmatch(one.form[0], value):
        raise UserError(f"{written} is {value!r}; give {one.form[1]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{written} is {value}; give a finite number")
    if one.least is not None and value < one.least:
        raise UserError(f"{written} is {value:g}; give {one.least:g} or more")
    if one.above is not None and value <= one.above:
        raise UserError(f"{written} is {value:g}; give more than {one.above:g}")
    if one.most is not None and value > one.most:
        raise UserError(f"{written} is {value:g}; give {one.most:g} or less")
    if one.path is not None and value != one.word:
        there = {"file": Path.is_file, "folder": Path.is_dir}.get(one.path, Path.exists)
        if not there(Path(_path(one, value))):
            instead = f"; give a path, or `{one.word}`" if one.word else ""
            raise UserError(f"{written} {value}: no such {one.path}{instead}")
    return value


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _path(one: Option, value: str) -> str:
    return value.partition("=")[2] if one.many else value


def absolute(options: Options) -> Options:
    """The same with whole paths: for a process that runs in another folder."""
    changed: dict[str, Any] = {}
    for name, one in asked(type(options)).items():
        value = getattr(options, name)
        if one.path is None or value is None or value == one.word:
            continue
        if one.many:
            changed[name] = tuple(f"{item.partition('=')[0]}={Path(_path(one, item)).resolve()}" for item in value)
        else:
            changed[name] = str(Path(value).resolve())
    return dataclasses.replace(options, **changed)


def deciding(options: Options) -> Iterator[str]:
    """What decides the result, a line each; what a path holds and not what it is called."""
    for name, one in asked(type(options)).items():
        value = getattr(options, name)
        if one.decides:
            yield f"{name} {value if one.path is None or value is None else _content(one, value)}"


def _content(one: Option, value: Any) -> str:
    if one.many:
        return " ".join(f"{item.partition('=')[0]}={path_hash(_path(one, item))}" for item in value)
    return str(value) if value == one.word else path_hash(value)


def settings(options: Options) -> dict[str, Any]:
    """What was asked for and decides the result, by name, without files: what tells records of one row in one folder apart."""
    known = asked(type(options))
    return {name: getattr(options, name) for name, one in known.items() if one.decides and one.path is None}


def compared(options: Options) -> dict[str, Any]:
    """What has to be equal for two rows to be compared, by name."""
    return {name: getattr(options, name) for name, one in options_of(type(options)).items() if one.compared}


def in_words(options: Options) -> list[str]:
    """What is compared, as a title tells it: what always stands there, and what is not as usual."""
    known, said = options_of(type(options)), []
    for name, value in compared(options).items():
        one = known[name]
        tells = one.reads is not None or not one.found
        if one.always or (tells and value != one.usual(options.model, quick=options.quick)):
            said.append((one.reads or f"{name} {{}}").format(value))
    return said


def as_arguments(options: Options, *, row: str, study: str | None = None) -> list[str]:
    """The command line that measures one row, or the study that it is part of, with the same result."""
    words = ["varbench", "run", *(("--plugins", row) if study is None else ("--study", study))]
    for name, one in asked(type(options)).items():
        value = getattr(options, name)
        read_off_files = name == "model" and value not in presets.names()  # and is again
        if not one.decides or value is None or value is False or read_off_files:
            continue
        for item in value if one.many else (value,):
            words += [one.flag] if item is True else [one.flag, str(item)]
    return words
