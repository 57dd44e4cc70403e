"""`varbench check PACKAGE`: whether a method keeps what every method must."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from varbench.commands import add_json
from varbench.errors import UserError, did_you_mean

BROKEN = 1


HELP = "the conformance kit: whether a method keeps what every method must"


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments

    parser = subparsers.add_parser(
        "check",
        help=HELP,
        description="Runs a method on a tiny random model, on the CPU, and holds every promise against it. Exit code 1 when one "
        "is broken.",
    )
    parser.add_argument(
        "package",
        nargs="?",
        metavar="PACKAGE",
        help="a plugin, an installed package with plugins, or a row, as in NAME@POINT",
    )
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="only these invariants, as in deterministic,batch_invariance"
    )
    parser.add_argument("--without", default="", metavar="NAMES", help="all but these invariants")
    add_arguments(parser, "model", model="sizes of another model, with random weights; default: eight small layers")
    parser.add_argument("--list", action="store_true", dest="listing", help="list the invariants, and check nothing")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.check.kit import check, invariants
    from varbench.check.small_model import SPEC
    from varbench.plan.presets import preset
    from varbench.record.option_forms import given_in

    if args.listing:
        print("\n".join(f"{name}\n    {promise}" for name, promise in invariants().items()))
        return 0
    if args.package is None:
        raise UserError("name a plugin, a package or a row to check, as in: varbench check NAME@POINT")
    only, without = (tuple(filter(None, names.split(","))) for names in (args.only, args.without))
    given = given_in(args, "model")
    model = preset(given["model"]).spec if given else SPEC
    findings = []
    held: set[str] = set()

    def progress(row: str, invariant: str, kept: bool, seconds: float) -> None:
        held.add(invariant)
        print(f"{row}: {invariant}: {'kept' if kept else 'BROKEN'} ({seconds:.2f} s)", file=sys.stderr)

    methods = _methods(args.package)
    for method in methods:
        findings += check(method, only=only or None, without=without, model=model, progress=progress)
    if args.json:
        print(json.dumps([{"invariant": f.invariant, "row": f.row, "message": f.message} for f in findings], indent=1))
    elif findings:
        print("\n".join(map(str, findings)))
    else:
        print(f"{', '.join(methods)} keep{'s' if len(methods) == 1 else ''} {len(held)} promises")
    return BROKEN if findings else 0


def _methods(package: str) -> list[str]:
    """Rows to check: a distribution stands for all its plugins. Nothing is imported for it."""
    from importlib.metadata import entry_points

    points = entry_points(group="varbench")
    first = package.partition("+")[0].partition("@")[0].partition(":")[0]
    if first in points.names:
        return [package]
    found = [
        point.name
        for point in points
        if point.dist and point.dist.name.lower().replace("_", "-") == package.lower().replace("_", "-")
    ]
    if not found:
        known = {*points.names, *(point.dist.name for point in points if point.dist)}
        raise UserError(f"no plugin or package {package!r} is installed.{did_you_mean(package, known)}")
    return found
