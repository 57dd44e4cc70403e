"""`varbench report`: records as a page, tables and figures."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from varbench.base.collecting import without_collecting
from varbench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from varbench.record import Record
    from varbench.show.page import Changes

RUNS = Path("varbench-runs")


HELP = "a page, tables and figures from records"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help=HELP,
        description="Makes OUT/<run>/index.html, the same table as Markdown, LaTeX, CSV, JSON and Parquet, and the figures as "
        "files, from records alone. Another report is never overwritten.",
    )
    parser.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports/")
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        metavar="DIR",
        help=f"run folders or records; default: the newest run under {RUNS}/",
    )
    parser.add_argument(
        "--paper",
        metavar="PLUGIN",
        help="the table of a plugin's paper, row by row beside what was measured and what the plan foresees",
    )
    parser.add_argument("--compare", type=Path, metavar="OLD", help="an older report or run to stand beside")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with without_collecting():
        return _reported(args)


def _reported(args: argparse.Namespace) -> int:
    from varbench.record import Encoded, load_records
    from varbench.record.sections import Panel
    from varbench.show import paper
    from varbench.show.outputs import render
    from varbench.show.plugin_sections import plugin_panels

    table = paper.asked(args.paper) if args.paper else None
    try:
        places = args.records or [newest_run(RUNS)]
    except UserError:
        if table is None:
            raise
        places = []  # a paper can be read without a run
    loaded = load_records(places)
    for problem in loaded.problems:
        print(f"warning: {problem}", file=sys.stderr)
    ours = () if table is None else (paper.section(table, loaded.records),)
    for section in ours:
        print(paper.as_text(section), end="\n\n")
    if not loaded.records:
        if ours:
            print("no records, so no page; name run folders with --records", file=sys.stderr)
            return 0
        raise UserError(f"no records in {', '.join(map(str, places))}: nothing to report; run `varbench run` first")
    changes = _changes(args.compare, loaded.records) if args.compare else None
    encoded = Encoded.of(loaded.records)
    unwanted = Event()
    with ThreadPoolExecutor(max_workers=1) as beside:
        given = beside.submit(plugin_panels, encoded.texts, unwanted=unwanted)
        try:
            page = render(
                loaded.records, args.out, problems=loaded.problems, changes=changes, encoded=encoded,
                panels=[Panel(source=f"--paper {args.paper}", section=section) for section in ours], plugins=given.result,
            )  # fmt: skip
        finally:
            unwanted.set()
    for reason in given.result().silent:
        print(f"warning: {reason}", file=sys.stderr)
    print(page)
    return 0


def newest_run(runs: Path) -> Path:
    """The run folder with the latest record. Folders are compared by their records, since names may be chosen."""
    newest: tuple[float, Path] | None = None
    for folder in runs.iterdir() if runs.is_dir() else ():
        times = [path.stat().st_mtime for path in folder.rglob("[!.]*.json")] if folder.is_dir() else []
        if times and (newest is None or max(times) > newest[0]):
            newest = (max(times), folder)
    if newest is None:
        raise UserError(f"no run under {runs}/: run `varbench run` first, or name folders with --records")
    return newest[1]


def _changes(old: Path, records: Sequence[Record]) -> Changes:
    from varbench.record import load_records
    from varbench.show.compare import COLUMNS, compare, table_rows
    from varbench.show.page import Changes

    comparison = compare(load_records([old]).records, records)
    rows = tuple(table_rows(comparison))
    return Changes(title=f"Against {old.name}", columns=COLUMNS, rows=rows, warnings=comparison.warnings)
