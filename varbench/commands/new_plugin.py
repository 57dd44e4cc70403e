"""`varbench new-plugin NAME`: a package with one method, its test and its entry point, to begin from."""

from __future__ import annotations

import argparse
import keyword
import shlex
import sys
from pathlib import Path
from typing import Any

from varbench import __version__
from varbench.errors import UserError

HELP = "an installable package with one method, or a column or panel, to begin from"


def add_parser(subparsers: Any) -> None:
    from varbench.check.templates import KINDS

    parser = subparsers.add_parser(
        "new-plugin",
        help=HELP,
        description="Writes NAME/ with pyproject.toml, the plugin, its test and a README. Its tests pass as written.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="the method's name in rows, and the package's: a Python identifier"
    )
    parser.add_argument(
        "--kind", choices=sorted(KINDS), default="depth", help="what it changes or adds; default: depth"
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where NAME/ is made; default: here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.check.templates import files

    _check_name(args.name)
    folder: Path = args.out / args.name
    if folder.exists():
        raise UserError(f"{folder} exists already and is left as it is; choose another name, or another place by --out")
    for path, text in files(args.name, kind=args.kind, version=__version__).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file)
    print(f"next: cd {shlex.quote(str(folder))} && pip install -e '.[test]' && pytest", file=sys.stderr)
    return 0


def _check_name(name: str) -> None:
    from importlib.metadata import entry_points, packages_distributions

    if keyword.iskeyword(name):
        raise UserError(
            f"{name!r} is a word of Python's own, and a module needs a name; choose another, as {name}_method"
        )
    if not (name.isascii() and name.isidentifier()):
        raise UserError(
            f"{name!r} is no Python identifier, and it names a module; use letters, digits and _, as in my_method"
        )
    if name in sys.stdlib_module_names or name == "varbench":
        raise UserError(f"{name!r} is the name of a module that is there already; choose another")
    if owners := packages_distributions().get(name):
        raise UserError(
            f"{name!r} is a module of {owners[0]}, which is installed here and would be replaced; choose another"
        )
    taken = [point for point in entry_points(group="varbench") if point.name == name]
    if taken:
        owner = taken[0].dist.name if taken[0].dist else "another package"
        raise UserError(
            f"{name!r} is a plugin of {owner} already, and of two with one name neither is used; choose another"
        )
