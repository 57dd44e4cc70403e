"""The verbs of the command line, one module each: `add_parser(subparsers)` and `run(args)`, which gives the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varbench.rows.manager import PluginManager, Problem


def add_json(parser: argparse.ArgumentParser, printed: str = "JSON") -> None:
    parser.add_argument("--json", action="store_true", help=f"print {printed}")


def add_config(parser: argparse.ArgumentParser, holds: str) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file with these same keys{holds}; the command line wins"
    )


def usable_plugins(args: argparse.Namespace) -> PluginManager:
    """All plugins, imported; a warning on stderr for each that cannot be used."""
    from varbench.rows.manager import manager

    found = manager()
    found.load_all()
    warn(found.problems(), args)
    return found


def warn(problems: Iterable[Problem], args: argparse.Namespace) -> None:
    for problem in problems:
        print(f"warning: {problem.message}", file=sys.stderr)
        if args.traceback and problem.traceback:
            print(problem.traceback, file=sys.stderr)
