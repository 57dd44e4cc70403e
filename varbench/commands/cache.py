"""`varbench cache`: what is kept on this machine, how large it is, and room made."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from typing import Any

from varbench.commands import add_json

_DAY = 24 * 3600.0


HELP = "what varbench keeps on this machine, and room made"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cache",
        help=HELP,
        description="Lists what is kept to save time, by kind. All of it is made again where it is needed, so all of it can be "
        "removed; trained recipes take longest. Trainings and runs that are going on should end first.",
        epilog="examples:\n  varbench cache\n  varbench cache --prune all --older-than 30\n  varbench cache --prune tokens,images",
    )
    parser.add_argument(
        "--prune", metavar="KINDS", help="remove what is kept of these kinds, by comma as they are listed, or all"
    )
    parser.add_argument(
        "--older-than", type=float, default=0.0, metavar="DAYS", help="only what was not written for so long; default: 0"
    )  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from varbench.base.places import KINDS, cache_root, kept
    from varbench.errors import UserError, did_you_mean

    wanted = [] if args.prune is None else list(KINDS) if args.prune == "all" else args.prune.split(",")
    for kind in wanted:
        if kind not in KINDS:
            raise UserError(f"nothing of the kind {kind!r} is kept.{did_you_mean(kind, KINDS)}")
    if args.older_than and not wanted:
        raise UserError("--older-than says what --prune removes; give both")
    before = time.time() - args.older_than * _DAY
    gone = [(kind, entry) for kind in wanted for entry in kept(kind) if entry.changed <= before]
    for _, entry in gone:
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    left = {kind: kept(kind) for kind in KINDS}
    if args.json:
        told = {kind: {"entries": len(found), "bytes": sum(one.size for one in found)} for kind, found in left.items()}
        print(json.dumps({"folder": str(cache_root()), "removed": len(gone), "kinds": told}, indent=1))
        return 0
    if wanted:
        print(f"{len(gone)} entries removed, {_mib(sum(one.size for _, one in gone))} freed")
    lines = [
        (kind, len(found), _mib(sum(one.size for one in found)), _ago(found), KINDS[kind])
        for kind, found in left.items()
    ]
    print(tabulate(lines, ("kind", "entries", "size", "last written", ""), colalign=("left", "right", "right")))
    print(cache_root())
    return 0


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _ago(found: list[Any]) -> str:
    if not found:
        return "-"
    days = (time.time() - max(one.changed for one in found)) / _DAY
    return "today" if days < 1 else f"{days:.0f} days ago"
