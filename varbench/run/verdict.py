"""Whether a row's figures may be believed, and what should be measured better."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from varbench.measure.speed import TOO_FAST
from varbench.record import Notice, Score, Validity, Verdict
from varbench.record.option_forms import as_arguments
from varbench.rows import FULL
from varbench.run import pitfalls, sanity, verify
from varbench.run.findings import Findings
from varbench.run.prepare import RowInRun, Run

TIMED = "an equal call is no faster"
CHECKED = (
    "ran as planned, step by step", "state equals the plan's to the byte", "equal calls gave equal tokens",
    "nothing hidden between steps, nothing left behind", "no global state changed", TIMED,
)  # fmt: skip
CHECKED_QUICKLY = ("no global state changed", TIMED)
CHECKED_OUTSIDE = ("equal calls gave equal images", "no global state changed", TIMED)
"""Of a row that replaces the loop."""


def validity(
    run: Run,
    row: RowInRun,
    found: Findings,
    floors: dict[str, Score],
    others: Mapping[str, Findings] = {},
    *,
    complete: bool,
) -> Validity:
    if not complete:
        return Validity()
    reasons = [
        f"{one}; change nothing meanwhile, and measure again"
        for one in (*found.mismatches, *verify.other_traces(run, found), *verify.other_contents(run, found.seen))
    ]
    reasons += [f"{one}; `varbench check {row.name}` holds it to that" for one in _of_itself(found)]
    reasons += _of_the_board(found)
    reasons += sanity.reasons(run, row, found, floors, others)
    if reasons:
        return Validity(verdict=Verdict.INVALID, reasons=tuple(reasons))
    return Validity(verdict=Verdict.VALID, reasons=_checked(row, found))


def _of_itself(found: Findings) -> Iterator[str]:
    """What its own calls showed, beside its plan and each other."""
    yield from found.looks.findings if found.looks else ()
    parts = [found.looks, found.seen, *found.speed.values()]
    if changed := sorted({name for part in parts if part is not None for name in part.changed}):
        yield f"the row changes global state: {', '.join(changed)}"
    repeats = [one.identical for one in found.speed.values() if one.identical is not None]
    if repeats and max(repeats) < TOO_FAST:
        yield f"an equal call takes {max(repeats):.0%} of a fresh one's time: something is remembered between calls"


def _of_the_board(found: Findings) -> list[str]:
    """Why what was timed is no figure of a card of this name."""
    told = dict.fromkeys(reason for one in found.speed.values() for reason in one.board)
    reasons = [f"the GPU was not what its name says, or not alone: {reason}" for reason in told]
    if found.speed and found.loaded is not None and found.loaded.disturbed:
        reasons.append(f"others were on the GPU, processes {', '.join(map(str, found.loaded.disturbed))}")
    return [f"{reason}; `nvidia-smi -q` shows it: mend it, and measure again" for reason in reasons]


def _checked(row: RowInRun, found: Findings) -> tuple[str, ...]:
    done = CHECKED_QUICKLY if found.looks is None else CHECKED_OUTSIDE if row.replaces_loop else CHECKED
    return done if found.speed else tuple(one for one in done if one != TIMED)


def warnings(run: Run, row: RowInRun, found: Findings) -> tuple[Notice, ...]:
    """What is to be known of this row alone. Whether its figures are sure enough is seen beside the others, on the page."""
    notices = []
    options = run.options
    if (
        row.resolved.recipe is not None
        and row.resolved.weight_set == "pretrained"
        and run.trained_for not in pitfalls.own_recipes(row)
    ):
        text = f"nothing was trained for {row.resolved.recipe}: the weights that were given were used as they are"
        again = as_arguments(pitfalls.with_data(options), row=row.name, study=row.resolved.study)
        notices.append(Notice(text=text, next_command=shlex.join(again)))
    notices += pitfalls.notices(run, row, found)
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
