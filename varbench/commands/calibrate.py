"""`varbench calibrate ROW`: an offline pass that finds a method's own parameters, and the row to run with them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from varbench.commands import add_json, usable_plugins
from varbench.commands.sample import OF_MODEL, add_options_of_model, open_pipeline

if TYPE_CHECKING:
    from varbench.engine.calibration import Calibration


HELP = "the offline pass of a method that has one, and the row to run with what it found"
COMPUTES = True


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help=HELP,
        description="Runs the calibration of a row's plugins on the weights that are given, or the preset's own. What it finds "
        "are parameters; a plan depends on nothing that the row does not say, so run the row that is printed. All that was "
        "found is kept as JSON, named by its hash.",
        epilog="examples:\n"
        "  varbench calibrate NAME@POINT\n"
        "  varbench calibrate NAME@POINT --model var-d30 --weights var_d30.pth --vae vae_ch160v4096z32.pth --device cuda\n"
        "  varbench run --plugins $(varbench calibrate NAME@POINT | head -1)",
    )
    parser.add_argument("row", metavar="ROW", help="one row, as in NAME@POINT")
    add_options_of_model(parser, *OF_MODEL)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench import rows
    from varbench.engine.calibration import calibrate
    from varbench.record.option_forms import given_in

    manager = usable_plugins(args)
    pipe, _ = open_pipeline(given_in(args, *OF_MODEL), heads=args.heads)
    found = calibrate(rows.resolve(args.row, pipe.model, manager=manager), pipe, manager=manager)
    print(json.dumps(_as_json(found), indent=1) if args.json else "\n".join(_lines(found)))
    print(f"next: varbench run --plugins {shlex.quote(found.row.name)}", file=sys.stderr)
    return 0


def _lines(found: Calibration) -> list[str]:
    """The row first, so that a script can take it."""
    parameters = [f"  {name} = {value}" for name, value in found.parameters.items()]
    return [
        found.row.name,
        *(parameters or ["  no parameter is changed"]),
        f"found by calibrating {found.asked} in {found.seconds:.1f} s",
        str(found.path),
    ]


def _as_json(found: Calibration) -> dict[str, Any]:
    return {
        "asked": found.asked,
        "row": found.row.name,
        "path": str(found.path),
        **{key: getattr(found, key) for key in ("parameters", "found", "digest", "seconds")},
    }
