"""The command line's surface as text: `python tests/command_line.py > tests/data/command_line.txt` after a change meant so."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from varbench.__main__ import build_parser, verbs


def surface() -> str:
    """Every command with its arguments, defaults and choices; help texts are free to improve."""
    parser = build_parser([importlib.import_module(module) for module in verbs().values()])
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    lines = ["varbench", *_arguments(parser)]
    for verb, command in sorted(commands.choices.items()):
        lines += [verb, *_arguments(command)]
    return "\n".join(lines) + "\n"


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from _nested(action)
            continue
        name = " ".join(action.option_strings) or action.dest
        shape = "" if action.nargs is None else f" nargs={action.nargs}"
        choices = f" of {', '.join(map(str, action.choices))}" if action.choices else ""
        default = "" if action.default in (None, argparse.SUPPRESS) else f" = {action.default}"
        yield f"    {name}{shape}{choices}{default}"


def _nested(action: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[str]:
    for name, parser in sorted(action.choices.items()):
        if parser.prog.count(" ") > 1:  # the verbs themselves are listed apart
            yield f"  {name}"
            yield from (f"    {line}" for line in _arguments(parser))


if __name__ == "__main__":
    print(surface(), end="")
