"""Whether a row's figures may be believed, and what should be measured better."""

from __future__ import annotations

import shlex

from varbench import rows
from varbench.base import stats
from varbench.plan.cost import work
from varbench.record import Notice, Timing, Validity, Verdict
from varbench.record.option_forms import as_arguments
from varbench.record.options import FEWEST_ROUNDS
from varbench.run.prepare import Measured, Run
from varbench.run.sections_of import anchor

TOO_FAST = 0.7
"""An equal repeat that takes less than this share of a fresh call has been remembered."""

WITHOUT_CAUSE = 0.2
"""A gain in speed beyond this needs less work as its cause."""

CHECKED = (
    "ran as planned, step by step", "state equals the plan's to the byte", "equal calls gave equal tokens",
    "nothing hidden between steps, nothing left behind", "no global state changed", "an equal call is no faster",
)  # fmt: skip
CHECKED_QUICKLY = ("ran as planned, step by step", "state equals the plan's to the byte", "no global state changed")
CHECKED_OUTSIDE = ("equal calls gave equal images", "no global state changed", "an equal call is no faster")
"""Of a row that replaces the loop."""


def validity(run: Run, one: Measured, *, complete: bool, floor: float) -> Validity:
    if not complete:
        return Validity()
    said = [one.memory or {}, *one.speed.values()]
    findings = list(dict.fromkeys(finding for found in said for finding in found.get("findings", ())))
    if changed := sorted({name for found in said for name in found.get("changed", ())}):
        findings.append(f"the row changes global state: {', '.join(changed)}")
    repeats = [found["identical"] for found in one.speed.values() if found.get("identical") is not None]
    if repeats and max(repeats) < TOO_FAST:
        findings.append(
            f"an equal call takes {max(repeats):.0%} of a fresh one's time: something is remembered between calls"
        )
    if gain := _gain_without_cause(run, one, floor):
        findings.append(gain)
    if findings:
        return Validity(verdict=Verdict.INVALID, reasons=tuple(findings))
    return Validity(verdict=Verdict.VALID, reasons=_checked(one))


def _checked(one: Measured) -> tuple[str, ...]:
    if one.memory is None:
        return CHECKED_QUICKLY
    return CHECKED if one.generator is None else CHECKED_OUTSIDE


def _gain_without_cause(run: Run, one: Measured, floor: float) -> str | None:
    """A row that is faster than the full model and does no less work has done something that its plan does not say."""
    full = run.prepared.measured[rows.FULL]
    if one.plan is None or full.plan is None or one.row.accounting != full.row.accounting:
        return None
    rounds = list(one.speed.values())
    theirs = anchor(rounds)
    if theirs is None or len(rounds) < FEWEST_ROUNDS:
        return None  # too few rounds to say so of anybody
    gain = stats.ratio(theirs, [tuple(found["columns"]["throughput"]["transformer"]) for found in rounds])
    if stats.judge_ratio(gain, minimum=WITHOUT_CAUSE, floor=floor) != "better" or gain.low < 1 + WITHOUT_CAUSE:
        return None
    sizes = [work(plan, batch=run.options.batch, dtype=run.options.dtype) for plan in (one.plan, full.plan)]
    flops, moved = (
        [size.transformer_flops for size in sizes],
        [sum(s.bytes_moved for s in size.steps) for size in sizes],
    )
    if flops[0] < flops[1] or moved[0] < moved[1]:
        return None
    return f"{gain.value:.2f} times as fast as the full model at no less work: {flops[0]:,} FLOPs and {flops[1]:,}"


def warnings(run: Run, one: Measured, timing: Timing | None) -> tuple[Notice, ...]:
    found = []
    again = as_arguments(run.options, row=one.name, study=one.study)
    if timing is not None and one.failure is None:
        for column in timing.columns:
            if column.column != "transformer" or (run.options.quick and len(column.rounds) < FEWEST_ROUNDS):
                continue
            if warning := stats.spread_warning(f"{column.regime} time of the transformer", column.rounds):
                text, flag = warning
                command = shlex.join([*again[: again.index("--rounds")], *again[again.index("--rounds") + 2 :]])
                found.append(Notice(text=text, next_command=f"{command} {flag}" if flag else None))
    if disturbed := (one.hello or {}).get("disturbed"):
        found.append(Notice(text=f"{len(disturbed)} other processes were on the GPU", next_command="nvidia-smi"))
    if one.row.schedule is not None and one.weight_set == "pretrained":
        text = f"nothing was trained for {one.row.recipe}: the weights that were given were used as they are"
        found.append(Notice(text=text, next_command=f"{shlex.join(again)} --data FOLDER"))
    if one.kept:
        what = " and ".join(sorted(one.kept))
        found.append(
            Notice(
                text=f"{what} from an earlier run on this machine: the same code, weights and noise; --fresh repeats it"
            )
        )
    if run.options.quick:
        found.append(Notice(text="a quick look: few images, one round, short training; not to be compared"))
    if one.name == rows.FULL and run.prepared.files is None:
        found.append(Notice(text="the weights are random, so speed and memory are true and quality is unknown"))
    return tuple(found)
