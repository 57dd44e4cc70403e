"""`varbench verify`: whether a run's records can be derived again here."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from varbench.commands import add_json

DIFFERS = 1


HELP = "whether the records of a run can be derived again here"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help=HELP,
        description="Derives plans, code, weights and inputs of every record anew and holds them against what the records say; "
        "scores images again where the run kept them (run --keep-images). Nothing is generated or timed. Exit code 1 if "
        "anything differs; what cannot be had here is said and is no difference.",
        epilog="examples:\n  varbench verify varbench-runs/2026-11-25T12-00-00",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the run's folder, or a report's records")
    add_json(parser, "every finding as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.errors import UserError
    from varbench.record import load_records
    from varbench.run.recheck import recheck

    loaded = load_records([args.folder])
    for problem in loaded.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if not loaded.records:
        raise UserError(f"{args.folder} holds no records; give a run's folder, as in varbench-runs/NAME")
    found = list(recheck(loaded.records, args.folder))
    differ = [one for one in found if one.same is False]
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        for one in found:
            if one.same is not True:
                kind = "differs" if one.same is False else "not to be told"
                print(f"{one.row}: {one.what} {kind}: recorded {_short(one.recorded)}, here {_short(one.here)}")
        same = sum(one.same is True for one in found)
        print(f"{len(loaded.records)} records: {same} of {len(found)} findings are the same, {len(differ)} differ")
    return DIFFERS if differ else 0


def _short(value: str | None) -> str:
    """Hashes by their first letters."""
    if value is None:
        return "nothing"
    return value[:12] if len(value) == 64 and value.isalnum() else value
