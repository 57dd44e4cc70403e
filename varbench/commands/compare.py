"""`varbench compare A B`: what improved, what regressed, and whether a limit was broken."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from varbench.base.collecting import without_collecting
from varbench.commands import add_json

HELP = "two runs or reports against each other"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help=HELP,
        description="Compares the rows that two sets of records share. Unlike protocols are refused. `same` means that no "
        "difference was shown; it may or may not be there. Speed is judged by the speedup over the full model; seconds alone "
        "hang on the machine's day and are not judged. In the column `change`, above 0 is better in every line.",
    )
    parser.add_argument("old", type=Path, metavar="A", help="run folder, report folder or record: the older set")
    parser.add_argument("new", type=Path, metavar="B", help="the newer set")
    parser.add_argument(
        "--fail-on",
        default="",
        metavar="LIMITS",
        help="exit with 1 when a row is shown to be worse by more than, e.g., speed:5%%,fid:0.2 (a share of speed, latency, "
        "memory or state; a difference of a score; fid means the Fréchet distance, by whatever features)",
    )
    add_json(parser, "JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with without_collecting():
        return _compared(args)


def _compared(args: argparse.Namespace) -> int:
    from varbench.record import load_records
    from varbench.show.compare import as_json, as_table, compare

    loaded = [load_records([place]) for place in (args.old, args.new)]
    for problem in (*loaded[0].problems, *loaded[1].problems):
        print(f"warning: {problem}", file=sys.stderr)
    comparison = compare(loaded[0].records, loaded[1].records, fail_on=args.fail_on)
    for warning in comparison.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(as_json(comparison), indent=1) if args.json else as_table(comparison))
    return 1 if comparison.failed else 0
