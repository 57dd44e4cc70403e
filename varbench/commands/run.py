"""`varbench run`: measures rows, each in processes of its own, and leaves a record of each."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from varbench.commands.report import RUNS, newest_run
from varbench.record.option_forms import add_arguments


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "run",
        help="measure rows: quality, speed and memory, each in processes of its own",
        description="Trains what is not cached, then measures every row beside the full model, in rounds of fresh processes. "
        "A record per row grows in --out while it runs; a crash, a hang or a lack of memory costs that row alone.",
        epilog="examples:\n"
        "  varbench run --plugins variant,fixed_ratio              all on the tiny preset, in minutes on a CPU\n"
        "  varbench run --plugins variant --quick                  a first look, not a result\n"
        "  varbench run --plugins variant@d8 --model var-d30 --weights var_d30.pth --vae vae_ch160v4096z32.pth \\\n"
        "      --reference VIRTUAL_imagenet256_labeled.npz --inception weights-inception-2015-12-05-6726825d.pth\n"
        "  varbench run --plugins variant --model var-d30 --weights random     speed and memory only\n"
        "  varbench run --resume --out varbench-runs/NAME --plugins variant    goes on where it was",
    )
    add_arguments(parser)
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with these same keys, at its top or under [run]; the command line wins",
    )
    add("--dry-run", action="store_true", help="print rows, children and the predicted time, and do nothing")
    add("--resume", action="store_true", help="skip rows whose records are complete and whose inputs are unchanged")
    add("--json", action="store_true", help="print the records as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.measure.environment import available_memory
    from varbench.record import to_json
    from varbench.rows.manager import manager
    from varbench.run import inputs
    from varbench.run.defaults import resolve
    from varbench.run.prepare import NothingSelectedError, origins, prepare
    from varbench.run.resume import complete_records
    from varbench.run.session import INTERRUPTED, NOTHING_SELECTED, carry_out
    from varbench.show import forecast
    from varbench.show.table import as_table, remarks, report_command

    options = resolve(args)
    out = _out(options.out, resume=args.resume)
    try:
        this = replace(prepare(options, name=out.name, known=manager().names()), available_memory=available_memory())
    except NothingSelectedError as error:
        print(f"varbench run: error: {error}", file=sys.stderr)
        return NOTHING_SELECTED
    if args.dry_run:
        done = complete_records(this, out) if out.is_dir() else {}
        found = forecast.forecast(this, out, done, weights=origins(this))
        print(json.dumps(asdict(found), indent=1) if args.json else forecast.as_text(found))
        return 0
    files = (options.companion, options.reference, options.inception, options.data)
    if options.device != "cpu" or options.weights not in (None, "random") or any(files):
        inputs.check(this.job(task="inspecting"))
    missing = [] if options.out else ["--out", str(out)]
    again = shlex.join(["varbench", *sys.argv[1:], *([] if args.resume else ["--resume"]), *missing])
    records, code = carry_out(this, out, resume=args.resume, again=again)
    if not records or code == INTERRUPTED:
        return code
    if args.json:
        print(json.dumps([to_json(record) for record in records], indent=1))
    else:
        print(as_table(records))
    for line in remarks(records):
        print(f"warning: {line}", file=sys.stderr)
    print(f"records: {out}\nnext: {report_command(out)}", file=sys.stderr if args.json else sys.stdout)
    return code


def _out(given: str | None, *, resume: bool) -> Path:
    if given:
        return Path(given)
    if resume:
        return newest_run(RUNS)
    return RUNS / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
