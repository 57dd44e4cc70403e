"""Whether a row's figures may be believed, and what should be measured better."""

from __future__ import annotations

import shlex

from varbench.base import stats
from varbench.plan.cost import work
from varbench.record import Notice, Validity, Verdict
from varbench.record.option_forms import as_arguments
from varbench.record.options import FEWEST_ROUNDS
from varbench.rows import FULL
from varbench.run.findings import Findings
from varbench.run.prepare import RowInRun, Run

TOO_FAST = 0.7
"""An equal repeat that takes less than this share of a fresh call, in every round, has been remembered."""

WITHOUT_CAUSE = 0.2
"""A gain in speed beyond this needs less work as its cause."""

CHECKED = (
    "ran as planned, step by step", "state equals the plan's to the byte", "equal calls gave equal tokens",
    "nothing hidden between steps, nothing left behind", "no global state changed", "an equal call is no faster",
)  # fmt: skip
CHECKED_QUICKLY = ("no global state changed", "an equal call is no faster")
CHECKED_OUTSIDE = ("equal calls gave equal images", "no global state changed", "an equal call is no faster")
"""Of a row that replaces the loop."""


def validity(run: Run, row: RowInRun, found: Findings, *, complete: bool) -> Validity:
    if not complete:
        return Validity()
    reasons = [*found.mismatches, *(found.looks.findings if found.looks else ())]
    parts = [found.looks, found.seen, *found.speed.values()]
    if changed := sorted({name for part in parts if part is not None for name in part.changed}):
        reasons.append(f"the row changes global state: {', '.join(changed)}")
    repeats = [one.identical for one in found.speed.values() if one.identical is not None]
    if repeats and max(repeats) < TOO_FAST:
        reasons.append(
            f"an equal call takes {max(repeats):.0%} of a fresh one's time: something is remembered between calls"
        )
    if gain := _gain_without_cause(run, row, found):
        reasons.append(gain)
    if reasons:
        return Validity(verdict=Verdict.INVALID, reasons=tuple(reasons))
    return Validity(verdict=Verdict.VALID, reasons=_checked(row, found))


def _checked(row: RowInRun, found: Findings) -> tuple[str, ...]:
    if found.looks is None:
        return CHECKED_QUICKLY
    return CHECKED_OUTSIDE if row.replaces_loop else CHECKED


def _gain_without_cause(run: Run, row: RowInRun, found: Findings) -> str | None:
    """A row that is faster than the full model and does no less work has done something that its plan does not say."""
    full = run.rows[FULL]
    if row.plan is None or full.plan is None or row.resolved.accounting != full.resolved.accounting:
        return None
    pairs = [one.throughput for one in found.speed.values()]
    if len(pairs) < FEWEST_ROUNDS:
        return None  # too few rounds to say so of anybody
    times = [
        [(pair.full.times.transformer, pair.row.times.transformer) for pair in some if pair.full is not None]
        for some in pairs
    ]
    known = [[(one, other) for one, other in some if one and other] for some in times]
    if not all(known):
        return None
    gain = stats.paired_ratio(
        [[one for one, _ in some] for some in known], [[other for _, other in some] for some in known]
    )
    if gain.low < 1 + WITHOUT_CAUSE:
        return None
    sizes = [work(plan, batch=run.options.batch, dtype=run.options.dtype) for plan in (row.plan, full.plan)]
    flops = [size.transformer_flops for size in sizes]
    moved = [sum(step.bytes_moved for step in size.steps) for size in sizes]
    if flops[0] < flops[1] or moved[0] < moved[1]:
        return None
    return f"{gain.value:.2f} times as fast as the full model at no less work: {flops[0]:,} FLOPs and {flops[1]:,}"


def warnings(run: Run, row: RowInRun, found: Findings) -> tuple[Notice, ...]:
    """What is to be known of this row alone. Whether its figures are sure enough is seen beside the others, on the page."""
    notices = []
    options = run.options
    if found.loaded is not None and found.loaded.disturbed:
        notices.append(
            Notice(text=f"{len(found.loaded.disturbed)} other processes were on the GPU", next_command="nvidia-smi")
        )
    if row.resolved.recipe is not None and row.resolved.weight_set == "pretrained":
        text = f"nothing was trained for {row.resolved.recipe}: the weights that were given were used as they are"
        again = as_arguments(options, row=row.name, study=row.resolved.study)
        notices.append(Notice(text=text, next_command=f"{shlex.join(again)} --data FOLDER"))
    if found.earlier:
        words = {"Seen": "quality", "Looks": "memory"}
        what = " and ".join(sorted(words[part] for part in found.earlier))
        notices.append(
            Notice(
                text=f"{what} from an earlier run on this machine: the same code, weights and noise; --fresh repeats it"
            )
        )
    if options.quick:
        notices.append(Notice(text="a quick look: few images, one round, short training; not to be compared"))
    if row.name == FULL and run.files is None:
        notices.append(Notice(text="the weights are random, so speed and memory are true and quality is unknown"))
    return tuple(notices)
