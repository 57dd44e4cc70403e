"""The command line. Each verb is a module of `varbench.commands`; only the one that is asked for is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from varbench import __version__, commands
from varbench.base import variables
from varbench.errors import UserError, WrongOutputError, did_you_mean

EXAMPLES = """\
examples:
  varbench plan variant@d8 --model var-d30      what half the depth saves, without weights or a GPU
  varbench sample full_var,variant@d8           images of both, same noise, into one PNG
  varbench list                                 methods, their settings, model presets, hardware

A row is name[@[recipe/]point][:key=value], and rows are joined by a comma; + joins methods within a row:
  variant   variant@d8   fixed_ratio@p05/d8   variant@d8:bridge=4   variant@d8+scale_window

exit codes: 0 fine, 1 regression, 2 usage, 3 some rows failed, 4 nothing selected, 5 all failed, 70 a fault of varbench
itself, 130 interrupted. Results go to stdout, progress and warnings to stderr."""

USAGE, FAULT, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141


class _Help(argparse.HelpFormatter):
    """Wraps descriptions, and leaves alone those that bring their own lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; abbreviated options are refused, so that a new one breaks nobody's script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Help, **options})
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def verbs() -> dict[str, str]:
    """Module of each verb, by the verb's name."""
    found = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return {_verb(name): f"{commands.__name__}.{name}" for name in sorted(found)}


def _verb(module: str) -> str:
    return module.rpartition(".")[2].replace("_", "-")


def build_parser(modules: Sequence[ModuleType], *, list_only: bool = False) -> argparse.ArgumentParser:
    """The parser of these verbs, or one that can only name them. Every verb takes `--disable` and `--traceback`."""
    parser = _Parser(
        prog="varbench",
        description="Measures, on equal terms, what each way of making visual autoregressive (VAR) image generation cheaper "
        "really buys.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"varbench {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in modules:
        if list_only:  # options bring along what they are options of
            subparsers.add_parser(_verb(module.__name__), help=module.HELP)
        else:
            module.add_parser(subparsers)
    for verb in subparsers.choices.values():
        common = verb.add_argument_group("with every command")
        common.add_argument(
            "--disable", action="append", default=[], metavar="PLUGIN",
            help=f"leave a plugin out, unimported: NAME or PACKAGE:NAME; also {variables.DISABLE}=NAME,NAME",
        )  # fmt: skip
        common.add_argument(
            "--traceback", action="store_true", help="show the traceback of an error or of a broken plugin"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = verbs()
    verb = arguments[0] if arguments else "--help"
    if verb not in known and not verb.startswith("-"):
        print(f"varbench: error: no command {verb!r}.{did_you_mean(verb, known)}", file=sys.stderr)
        return USAGE
    wanted = [known[verb]] if verb in known else list(known.values())
    parser = build_parser([importlib.import_module(module) for module in wanted], list_only=verb not in known)
    args = parser.parse_args(arguments or ["--help"])
    try:
        if args.disable:
            names = [name for given in args.disable for name in given.split(",")]
            from varbench.rows.manager import manager

            before = os.environ.get(variables.DISABLE)
            # In the environment, so that the processes a run starts leave out the same.
            os.environ[variables.DISABLE] = ",".join([*names, *([before] if before else [])])
            manager().check_disabled(names)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("varbench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `| head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        return _report(error, verb, show=args.traceback)


def _report(error: Exception, verb: str, *, show: bool) -> int:
    if show:
        traceback.print_exception(error)
    if isinstance(error, (UserError, WrongOutputError, OSError)):
        print(f"varbench {verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    hint = "" if show else " Run it again with --traceback for the place."
    print(f"varbench {verb}: fault: {type(error).__name__}: {error}.{hint}", file=sys.stderr)
    return FAULT


def entry() -> int:
    """The program. A verb that computes here begins once more as `base.variables` wants it: a training step takes a third less."""
    module = verbs().get(sys.argv[1]) if len(sys.argv) > 1 else None
    lacking = {name: value for name, value in variables.OF_PROCESSES.items() if name not in os.environ}
    if lacking and module and sys.platform == "linux" and getattr(importlib.import_module(module), "COMPUTES", False):
        os.environ.update(lacking)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return main()


if __name__ == "__main__":
    sys.exit(entry())
