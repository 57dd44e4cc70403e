"""The verbs of the command line, one module each: `add_parser(subparsers)` and `run(args)`, which gives the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varbench.rows.manager import PluginManager, Problem


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
