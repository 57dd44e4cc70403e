"""A run from its first process to its last record, also when it is interrupted or the disk is full."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from varbench.base.display import Display, shown
from varbench.base.termination import terminated_as_interrupted
from varbench.errors import UserError
from varbench.record import Record, Status
from varbench.record.option_forms import in_words, settings
from varbench.run.conduct import Conduct
from varbench.run.prepare import Run
from varbench.run.resume import complete_records, other_settings, set_aside_outdated
from varbench.run.spread.dispatch import Dispatch

FINE, SOME_FAILED, NOTHING_SELECTED, ALL_FAILED, INTERRUPTED = 0, 3, 4, 5, 130


def carry_out(runs: Sequence[Run], out: Path, *, resume: bool, again: str) -> tuple[list[Record], int]:
    """The records, and the exit code. `again` is the command that goes on where an interrupted run was. Several runs, which
    differ in their options, come one after the other into the same folder."""
    _check_place(out, resume=resume)
    records: list[Record] = []
    with locked(out), shown(*foreseen(runs)) as display:
        for number, run in enumerate(runs, 1):
            if len(runs) > 1:
                display.note(f"run {number} of {len(runs)}: {', '.join(in_words(run.options))}")
            others = [other for other in runs if other is not run]
            some, ended = _carry_out(run, out, display, resume=resume, again=again, others=others)
            if ended is not None:
                return [], ended
            records += some
    return records, exit_code(records)


def _carry_out(
    run: Run, out: Path, display: Display, *, resume: bool, again: str, others: Sequence[Run]
) -> tuple[list[Record], int | None]:
    """The records of one run, and the exit code if it came to no end."""
    found = complete_records(run, out) if resume else {}
    if resume:
        _say_what_is_there(run, out, len(found), others=others)
    with terminated_as_interrupted(), contextlib.ExitStack() as cleanup:
        conduct: Conduct | Dispatch
        if run.options.executor == "ray":
            from varbench.run.spread.on_ray import RayCluster

            cluster = cleanup.enter_context(RayCluster(run.options, note=display.note))
            conduct = Dispatch(run=run, out=out, display=display, cluster=cluster, done=found)
        else:
            conduct = Conduct(run=run, out=out, display=display, done=found)
        try:
            conduct.everything()
            return [*found.values(), *conduct.save_all()], None
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # what was measured lies there already
                conduct.save_all()
            display.note(f"interrupted; everything that was measured is in {out}\ngo on with: {again}")
            return [], INTERRUPTED
        except OSError as error:
            free = shutil.disk_usage(out).free / 2**20
            display.note(
                f"varbench run: error: {error}; {free:,.1f} MiB are free there. What was measured before is in {out}\n"
                f"once files can be written, go on with: {again}"
            )
            written = complete_records(run, out, own=True)
            unwritten = (record for record in conduct.records() if record.row.row not in written)
            lost = (replace(record, status=Status.INTERRUPTED) for record in unwritten)
            return [], exit_code([*written.values(), *lost])


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Two runs in one folder would overwrite each other's records."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another run is working in {out}; wait for it, or choose another --out") from error
        yield


def parts(run: Run) -> dict[str, int]:
    """How many parts of each kind the run has, for the bar."""
    sets = run.weight_sets
    rounds = sum(run.rounds_of(*weights.rows) for weights in sets)
    quick = len(sets) if run.options.quick else 0
    return {
        "training": int(any(weights.trains is not None for weights in sets)),
        "images and memory": len(sets) - quick,
        "images and speed": quick,
        "speed": rounds - quick,
    }


def foreseen(runs: Sequence[Run]) -> tuple[dict[str, int], dict[str, float]]:
    """How many parts of each kind all of them have, and how long one is predicted to take, where each says so."""
    counts = [parts(run) for run in runs]
    kinds = {kind: sum(count[kind] for count in counts) for kind in counts[0]}
    seconds = {
        kind: sum(count[kind] * run.part_seconds[kind] for run, count in zip(runs, counts, strict=True)) / kinds[kind]
        for kind in kinds
        if kinds[kind] and all(kind in run.part_seconds for run in runs)
    }
    return kinds, seconds


def exit_code(records: list[Record]) -> int:
    complete = [record.status is Status.COMPLETE for record in records]
    if all(complete):
        return FINE
    methods = [record for record in records if record.row.denominator is None] or records
    return SOME_FAILED if any(record.status is Status.COMPLETE for record in methods) else ALL_FAILED


def _check_place(out: Path, *, resume: bool) -> None:
    """Nothing is overwritten silently."""
    if not resume and out.is_dir() and any(out.glob("[!.]*.json")):
        raise UserError(f"{out} holds records already: go on with them by --resume, or choose another --out")


def _say_what_is_there(run: Run, out: Path, complete: int, *, others: Sequence[Run]) -> None:
    print(f"{complete} of {len(run.rows)} rows are complete and unchanged", file=sys.stderr)
    if outdated := set_aside_outdated(run, out):
        print(
            f"{len(outdated)} complete rows were made from other code, plugins or files, or with other options, and are "
            f"measured again; their records stay as {out}/*.json.old: {', '.join(outdated)}",
            file=sys.stderr,
        )
    if differ := other_settings(run, out, besides=[settings(other.options) for other in others]):
        differences = ", ".join(f"{name} {theirs}, now {ours}" for name, (theirs, ours) in differ.items())
        print(
            f"warning: {out} holds records of these rows under other settings ({differences}); they stay beside the new ones. "
            "To keep runs apart choose another --out",
            file=sys.stderr,
        )
