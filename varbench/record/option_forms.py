"""Options in their other forms: command-line arguments, keys of a TOML file, a hash, conditions, a command line to repeat.

All are derived from the fields of the dataclass, so that a new field is a new option everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from varbench.base.hashing import path_hash
from varbench.errors import UserError, did_you_mean
from varbench.plan import presets
from varbench.record.options import Option, Options, asked, options_of

_WANTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def add_arguments(
    parser: argparse._ActionsContainer, *names: str, kind: type[Options] = Options, sweeps: bool = False, **docs: str
) -> None:
    """The options of these names, or all, as arguments; `docs` are other words for what one does in this command. With
    `sweeps`, those that may have several values take them."""
    for name, option in asked(kind).items():
        if names and name not in names:
            continue
        shape: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if option.holds is not bool:
            reader = _several(option.holds) if sweeps and option.sweeps else option.holds
            shape = {"type": reader, "metavar": option.metavar, **({"action": "append"} if option.many else {})}
        parser.add_argument(option.flag, dest=name, help=docs.get(name, _help(option)), default=None, **shape)


def _several(kind: type) -> Callable[[str], Any]:
    """Reads one value, or several by comma."""

    def read(text: str) -> Any:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_WANTED[kind]}, or several by comma") from None
        return values[0] if len(values) == 1 else values

    return read


def _help(option: Option) -> str:
    default = option.default if option.absent is None else option.absent
    if default is False or default in ("", ()):
        return option.doc
    return f"{option.doc}; default: {default:g}" if isinstance(default, float) else f"{option.doc}; default: {default}"


def given_in(args: argparse.Namespace, *names: str, kind: type[Options] = Options) -> dict[str, Any]:
    """The options of these names, or all, that the command line gives, each checked."""
    written = {name: getattr(args, name, None) for name in names or asked(kind)}
    known = asked(kind)
    return {name: checked(known[name], value, known[name].flag) for name, value in written.items() if value is not None}


def read_config(path: Path, *, kind: type[Options] = Options) -> dict[str, Any]:
    """The options that a TOML file gives, at its top or under `[run]`, each checked; `-` and `_` are alike in its keys."""
    return options_in(read_toml(path), path, kind=kind, table="run")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error})") from error


def options_in(
    data: dict[str, Any], path: Path, *names: str, kind: type[Options], table: str | None = None, within: str = ""
) -> dict[str, Any]:
    """The options of these names, or all, that a file's keys give, and those of one `table` in it; `within` is where the keys
    stand in the file."""
    known = {name: option for name, option in asked(kind).items() if not names or name in names}
    inner = data.get(table) if table is not None else None
    given = [(key, value) for key, value in data.items() if inner is None or key != table]
    if inner is not None:
        given += inner.items() if isinstance(inner, dict) else [(str(table), inner)]
    found = {}
    for written, value in given:
        key = written.replace("-", "_")
        if key not in known:
            raise UserError(f"{path}: no key {within + written!r}.{did_you_mean(key, known)}")
        if key == "plugins" and isinstance(value, list):
            value = ",".join(map(str, value))
        found[key] = checked(known[key], value, f"{path}: {within}{written}")
    return found


def checked(option: Option, value: Any, written: str) -> Any:
    """A value as the option holds it, or `UserError`; `written` is what the user calls the option."""
    if option.many:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{written} is {value!r}; give a list of texts")
        return tuple(_checked_single(option, item, written) for item in value)
    if option.sweeps and isinstance(value, (list, tuple)):
        if not value:
            raise UserError(f"{written} is an empty list; give a value, or several")
        return tuple(dict.fromkeys(_checked_single(option, item, written) for item in value))
    return _checked_single(option, value, written)


def _checked_single(option: Option, value: Any, written: str) -> Any:
    if option.holds is float and _is_a(int, value):
        value = float(value)
    if not _is_a(option.holds, value):
        raise UserError(f"{written} is {value!r}; give {_WANTED[option.holds]}")
    if option.choices and value not in option.choices:
        raise UserError(f"{written} {value!r} is unknown.{did_you_mean(value, option.choices)}")
    if option.form is not None and not re.fullmatch(option.form[0], value):
        raise UserError(f"{written} is {value!r}; give {option.form[1]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{written} is {value}; give a finite number")
    if option.least is not None and value < option.least:
        raise UserError(f"{written} is {value:g}; give {option.least:g} or more")
    if option.above is not None and value <= option.above:
        raise UserError(f"{written} is {value:g}; give more than {option.above:g}")
    if option.most is not None and value > option.most:
        raise UserError(f"{written} is {value:g}; give {option.most:g} or less")
    if option.path is not None and value != option.word:
        there = {"file": Path.is_file, "folder": Path.is_dir}.get(option.path, Path.exists)
        if not there(Path(_path(option, value))):
            instead = f"; give a path, or `{option.word}`" if option.word else ""
            raise UserError(f"{written} {value}: no such {option.path}{instead}")
    return value


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _path(option: Option, value: str) -> str:
    return value.partition("=")[2] if option.many else value


def swept(given: dict[str, Any], *, kind: type[Options] = Options) -> list[dict[str, Any]]:
    """The given options once for each combination of the values of those that have several, the first one's in the outermost."""
    known = asked(kind)
    several = {name: value for name, value in given.items() if known[name].sweeps and isinstance(value, tuple)}
    ordered = [name for name in known if name in several]
    return [
        {**given, **dict(zip(ordered, values, strict=True))}
        for values in itertools.product(*(several[name] for name in ordered))
    ]


def paths_in(options: Options) -> dict[str, Any]:
    """The paths that are given, by option; of one that may be given several times, a tuple of NAME=PATH."""
    given = {name: (option, getattr(options, name)) for name, option in asked(type(options)).items() if option.path}
    return {name: value for name, (option, value) in given.items() if value and value != option.word}


def absolute(options: Options) -> Options:
    """The same options with absolute paths, for a process that runs in another folder."""
    known, changed = asked(type(options)), dict[str, Any]()
    for name, value in paths_in(options).items():
        option = known[name]
        if option.many:
            changed[name] = tuple(f"{item.partition('=')[0]}={Path(_path(option, item)).resolve()}" for item in value)
        else:
            changed[name] = str(Path(value).resolve())
    return dataclasses.replace(options, **changed)


def contents(options: Options) -> dict[str, str]:
    """Hashes of what lies at the given paths that can change the result, by option."""
    known = asked(type(options))
    return {name: _content(known[name], value) for name, value in paths_in(options).items() if known[name].decides}


def deciding(options: Options, contents: Mapping[str, str]) -> Iterator[str]:
    """One line for each option that can change the result; for a path, what `contents` says of it."""
    for name, option in asked(type(options)).items():
        if option.decides:
            yield f"{name} {contents.get(name, getattr(options, name))}"


def _content(option: Option, value: Any) -> str:
    if option.many:
        return " ".join(f"{item.partition('=')[0]}={path_hash(_path(option, item))}" for item in value)
    return path_hash(value)


def settings(options: Options) -> dict[str, Any]:
    """Options that can change the result, without paths: two records of a row in one folder differ in these."""
    known = asked(type(options))
    return {name: getattr(options, name) for name, option in known.items() if option.decides and option.path is None}


def compared(options: Options) -> dict[str, Any]:
    """Options that must be equal for two rows to be compared."""
    return {name: getattr(options, name) for name, option in options_of(type(options)).items() if option.compared}


def in_words(options: Options) -> list[str]:
    """The compared options as words of a title: some always, the others where they are not the default."""
    known, words = options_of(type(options)), []
    for name, value in compared(options).items():
        option = known[name]
        tells = option.reads is not None or not option.found
        if option.always or (tells and value != option.usual(options.model, quick=options.quick)):
            words.append((option.reads or f"{name} {{}}").format(value))
    return words


def as_arguments(options: Options, *, row: str, study: str | None = None) -> list[str]:
    """The command line that measures one row, or the study that it is part of, with the same result."""
    words = ["varbench", "run", *(("--plugins", row) if study is None else ("--study", study))]
    for name, option in asked(type(options)).items():
        value = getattr(options, name)
        read_off_files = name == "model" and value not in presets.names()  # and is again
        if not option.decides or value is None or value is False or read_off_files:
            continue
        for item in value if option.many else (value,):
            words += [option.flag] if item is True else [option.flag, str(item)]
    return words
