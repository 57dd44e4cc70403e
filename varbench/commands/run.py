"""`varbench run`: measures rows, each in processes of its own, and leaves a record of each."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench.commands import usable_plugins
from varbench.commands.report import RUNS, newest_run
from varbench.errors import UserError
from varbench.record.option_forms import add_arguments

if TYPE_CHECKING:
    from varbench.record import Record
    from varbench.run.prepare import Run

FINE, SOME_FAILED, NOTHING_SELECTED, ALL_FAILED, INTERRUPTED = 0, 3, 4, 5, 130


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
    from varbench.record import Status
    from varbench.rows.grammar import FULL
    from varbench.run import inputs
    from varbench.run.defaults import resolve
    from varbench.run.display import shown
    from varbench.run.earlier import complete_records
    from varbench.run.execute import Execution, locked
    from varbench.run.prepare import NothingSelectedError, prepare
    from varbench.run.schedule import base_job

    options = resolve(args)
    manager = usable_plugins(args)
    try:
        prepared = prepare(options, manager)
    except NothingSelectedError as error:
        print(f"varbench run: error: {error}", file=sys.stderr)
        return NOTHING_SELECTED
    files = (options.companion, options.reference, options.inception, options.data)
    if options.device != "cpu" or options.weights not in (None, "random") or any(files):
        inputs.check(replace(base_job(options, prepared), task="inputs", rows=(FULL,)), timeout=options.timeout)
    out = _out(options.out, resume=args.resume)
    this = _run(out, options, prepared)
    if args.dry_run:
        print(dry_run(this))
        return FINE
    _check_place(out, resume=args.resume)
    with locked(out):
        found = complete_records(this, out) if args.resume else {}
        if args.resume:
            _say_what_is_there(this, out, len(found))
        with shown(_children(this)) as progress:
            execution = Execution(run=this, out=out, progress=progress, done=found)
            missing = [] if options.out else ["--out", str(out)]
            again = shlex.join(["varbench", *sys.argv[1:], *([] if args.resume else ["--resume"]), *missing])
            try:
                execution.everything()
                records = [*found.values(), *execution.save_all()]
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):  # what was measured lies there already
                    execution.save_all()
                progress.note(f"interrupted; everything that was measured is in {out}\ngo on with: {again}")
                return INTERRUPTED
            except OSError as error:
                free = shutil.disk_usage(out).free / 2**20
                progress.note(
                    f"varbench run: error: {error}; {free:,.1f} MiB are free there. What was measured before is in {out}\n"
                    f"once files can be written, go on with: {again}"
                )
                written = complete_records(this, out)
                unwritten = (one for one in execution.records() if one.row.row not in written)
                lost = (replace(record, status=Status.INTERRUPTED) for record in unwritten)
                return _exit_code([*written.values(), *lost])
    return _finish(records, out, as_json=args.json)


def _say_what_is_there(this: Run, out: Path, complete: int) -> None:
    from varbench.run.earlier import other_settings, set_aside_outdated

    print(f"{complete} of {len(this.prepared.measured)} rows are complete and unchanged", file=sys.stderr)
    if outdated := set_aside_outdated(this, out):
        print(
            f"{len(outdated)} complete rows were made from other code, plugins or files, or with other options, and are "
            f"measured again; their records stay as {out}/*.json.old: {', '.join(outdated)}",
            file=sys.stderr,
        )
    if differ := other_settings(this, out):
        told = ", ".join(f"{name} {theirs}, now {ours}" for name, (theirs, ours) in differ.items())
        print(
            f"warning: {out} holds records of these rows under other settings ({told}); they stay beside the new ones. "
            "To keep runs apart choose another --out",
            file=sys.stderr,
        )


def _out(given: str | None, *, resume: bool) -> Path:
    if given:
        return Path(given)
    if resume:
        return newest_run(RUNS)
    return RUNS / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")


def _check_place(out: Path, *, resume: bool) -> None:
    """Nothing is overwritten silently."""
    if not resume and out.is_dir() and any(out.glob("[!.]*.json")):
        raise UserError(f"{out} holds records already: go on with them by --resume, or choose another --out")


def _run(out: Path, options: Any, prepared: Any) -> Run:
    from varbench.measure.environment import available_memory
    from varbench.run.prepare import UPSTREAM, Measured, Run

    def scored(one: Measured) -> bool:
        if one.generator is not None:
            return one.generator.trained
        return prepared.files is not None and one.name != UPSTREAM

    return Run(
        name=out.name,
        options=options,
        prepared=prepared,
        order=tuple(prepared.measured),
        quality_rows=frozenset(name for name, one in prepared.measured.items() if options.images and scored(one)),
        available_memory=available_memory(),
    )


def _children(this: Run) -> int:
    sets = this.prepared.weight_sets
    trained = sum(weights.trains is not None for weights in sets)
    scored = sum(any(name in this.quality_rows for name in weights.rows) for weights in sets)
    memory = 0 if this.options.quick else len(this.prepared.measured)
    return trained + scored + memory + this.options.rounds * len(sets)


def _finish(records: Sequence[Record], out: Path, *, as_json: bool) -> int:
    from varbench.record import to_json
    from varbench.show.table import as_table, remarks, report_command

    if as_json:
        print(json.dumps([to_json(record) for record in records], indent=1))
    else:
        print(as_table(records))
    for line in remarks(records):
        print(f"warning: {line}", file=sys.stderr)
    print(f"records: {out}\nnext: {report_command(out)}", file=sys.stderr if as_json else sys.stdout)
    return _exit_code(records)


def _exit_code(records: Sequence[Record]) -> int:
    from varbench.record import Status

    complete = [record.status is Status.COMPLETE for record in records]
    if all(complete):
        return FINE
    methods = [record for record in records if record.row.denominator is None] or records
    return SOME_FAILED if any(record.status is Status.COMPLETE for record in methods) else ALL_FAILED


def dry_run(this: Run) -> str:
    """Rows with their plans' work, how many children run, and how long that takes by the roofline."""
    from tabulate import tabulate

    from varbench.measure.environment import environment
    from varbench.plan.cost import work
    from varbench.run.prepare import hardware_like, predicted
    from varbench.show import formatting

    options = this.options
    here = environment("cpu")
    hardware = hardware_like("cpu", here.cores) if options.device == "cpu" else None
    full: int | None = None
    lines, seconds = [], 0.0
    for one in this.prepared.measured.values():
        if one.plan is None:
            lines.append((one.name, one.weight_set, "-", "-", one.failure.reason if one.failure else ""))
            continue
        flops = work(one.plan, batch=options.batch, dtype=options.dtype).transformer_flops
        full = full or flops
        call = (
            predicted(one.plan, batch=options.batch, dtype=options.dtype, hardware=hardware).total if hardware else None
        )
        if call is not None:
            images = options.images if one.name in this.quality_rows else 0
            timed = max(options.seconds, options.count * call) + 4 * call
            seconds += options.rounds * timed + 10 * call + images / options.batch * call
        lines.append((one.name, one.weight_set, f"{flops / full:.0%}", formatting.seconds(call) if call else "-", ""))
    table = tabulate(lines, ("row", "weights", "work", "batch, predicted", ""), disable_numparse=True)
    trained = [weights.key for weights in this.prepared.weight_sets if weights.trains is not None]
    children = _children(this)
    time = (
        f"about {formatting.seconds(seconds + 4 * children)} and the training"
        if seconds
        else "not predicted on this device"
    )
    return (
        f"{table}\n\n{children} children; recipes that are trained unless cached: {', '.join(trained) or 'none'}\n"
        f"time: {time} (a bound by the roofline)\nrecords would go to {this.name}; nothing was run"
    )
