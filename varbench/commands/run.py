"""`varbench run`: measures rows, each in processes of its own, and leaves a record of each."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench.commands import add_config, add_json
from varbench.commands.report import RUNS, newest_run

if TYPE_CHECKING:
    from varbench.record import Record
    from varbench.record.options import Options
    from varbench.run.prepare import Run


HELP = "measure rows: quality, speed and memory, each in processes of its own"


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments

    parser = subparsers.add_parser(
        "run",
        help=HELP,
        description="Trains what is not cached, then measures every row beside the full model, in rounds of fresh processes. "
        "A record per row grows in --out while it runs; a crash, a hang or a lack of memory costs that row alone.",
        epilog="examples:\n"
        "  varbench run --plugins variant,fixed_ratio              all on the tiny preset, in minutes on a CPU\n"
        "  varbench run --plugins variant --quick                  a first look, not a result\n"
        "  varbench run --plugins variant@d8 --model var-d30 --weights var_d30.pth --vae vae_ch160v4096z32.pth \\\n"
        "      --reference VIRTUAL_imagenet256_labeled.npz --inception weights-inception-2015-12-05-6726825d.pth\n"
        "  varbench run --plugins variant --model var-d30 --weights random     speed and memory only\n"
        "  varbench run --plugins variant --batch 1,8,64 --dtype float32,bfloat16      six tables of one page\n"
        "  varbench run --protocol imagenet256-50k --model var-d30 --checkpoints DIR --plugins full_var,variant,code\n"
        "  varbench run --resume --out varbench-runs/NAME --plugins variant    goes on where it was",
    )
    add_arguments(parser, sweeps=True)
    add_config(parser, ", at its top or under [run]")
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print rows, children and the predicted time, and do nothing")
    add("--resume", action="store_true", help="skip rows whose records are complete and whose inputs are unchanged")
    add_json(parser, "the records as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.record import all_to_json
    from varbench.run.defaults import resolve
    from varbench.run.prepare import NothingSelectedError
    from varbench.run.session import INTERRUPTED, NOTHING_SELECTED, carry_out
    from varbench.show.table import as_table, remarks, report_command

    sets = resolve(args)
    out = _out(sets[0].out, resume=args.resume)
    try:
        runs = [_prepared(options, out) for options in sets]
    except NothingSelectedError as error:
        print(f"varbench run: error: {error}", file=sys.stderr)
        return NOTHING_SELECTED
    if uncalibrated := _uncalibrated(runs):
        print(
            f"warning: not calibrated, so with what its method has by default: {', '.join(uncalibrated)}; next: the same "
            "command with --calibrate, or varbench calibrate ROW",
            file=sys.stderr,
        )
    if args.dry_run:
        return _forecast(runs, out, as_json=args.json)
    runs = [_foreseen(_looked_at(this), out) for this in runs]
    missing = [] if sets[0].out else ["--out", str(out)]
    again = shlex.join(["varbench", *sys.argv[1:], *([] if args.resume else ["--resume"]), *missing])
    records, code = carry_out(runs, out, resume=args.resume, again=again)
    if not records or code == INTERRUPTED:
        return code
    if args.json:
        print(json.dumps(all_to_json(records), indent=1))
    else:
        print(as_table(records))
    for line in remarks(records):
        print(f"warning: {line}", file=sys.stderr)
    print(f"records: {out}\nnext: {report_command(out)}", file=sys.stderr if args.json else sys.stdout)
    return code


def _prepared(options: Options, out: Path) -> Run:
    from varbench.measure.environment import available_memory
    from varbench.rows.manager import manager
    from varbench.run.prepare import prepare

    run = prepare(options, name=out.name, known=manager().names())
    return replace(run, available_memory=available_memory() if options.executor == "local" else None)


def _uncalibrated(runs: list[Run]) -> list[str]:
    """Rows that will be measured without what an offline pass would find for them."""
    names = (
        name
        for this in runs
        if not this.options.calibrate
        for name, row in this.rows.items()
        if row.resolved.uncalibrated and row.resolved.failure is None
    )
    return list(dict.fromkeys(names))


def _looked_at(run: Run) -> Run:
    """With the files that were given opened as rows will open them; says what will not fit."""
    from varbench.record.option_forms import paths_in
    from varbench.run import fits, inputs

    free = run.available_memory
    here = run.options.executor == "local"
    if (here and run.options.device != "cpu") or paths_in(run.options):
        found = inputs.check(run.job(task="inspecting"))
        free = free if found.device_memory is None else found.device_memory
    for line in fits.in_lines(run, fits.misfits(run, free=free), free=free or 0):
        print(line, file=sys.stderr)
    return run


def _foreseen(run: Run, out: Path) -> Run:
    """With the time that its parts are predicted to take. Trained weights are not looked at for that, which takes seconds."""
    from varbench.run.messages import Ahead
    from varbench.show.forecast import forecast

    found = forecast(run, out, _complete(run, out), weights=Ahead(origins={}))
    return replace(run, part_seconds=found.part_seconds)


def _complete(run: Run, out: Path) -> dict[str, Record]:
    from varbench.run.resume import complete_records

    return complete_records(run, out) if out.is_dir() else {}


def _forecast(runs: list[Run], out: Path, *, as_json: bool) -> int:
    from varbench.run.prepare import ahead
    from varbench.show import forecast

    found = [forecast.forecast(this, out, _complete(this, out), weights=ahead(this)) for this in runs]
    if as_json:
        print(json.dumps([asdict(one) for one in found] if len(found) > 1 else asdict(found[0]), indent=1))
    else:
        print("\n\n".join(map(forecast.as_text, found)))
    return 0


def _out(given: str | None, *, resume: bool) -> Path:
    if given:
        return Path(given)
    if resume:
        return newest_run(RUNS)
    return RUNS / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
