"""Questions that one child puts to many plugins. Where it dies of one, they are put again, to a child for each: what kills its
process costs its own rows only. No torch, and no plugin."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace

from varbench.errors import UserError
from varbench.record import Status
from varbench.record.failure import Failure
from varbench.rows import FULL
from varbench.rows.manager import manager
from varbench.rows.parts import parse
from varbench.run import children
from varbench.run.children import DiedError
from varbench.run.messages import Calibrated, Job, Resolved

_NOT_NOW = Failure(status=Status.FAILED, reason="another one is asked alone")


def resolved(job: Job) -> tuple[Resolved, Job]:
    """The rows, and the job without what kills a child that asks for it."""
    try:
        return children.answer_of(job, Resolved), job
    except DiedError as died:
        print(f"warning: of a child that asked all plugins: {died}; they are asked one by one", file=sys.stderr)
        deadly = _deadly(job)
        if not deadly:
            raise
    job = replace(job, left_out={**job.left_out, **deadly})
    return children.answer_of(job, Resolved), job


def _deadly(job: Job) -> dict[str, Failure]:
    """Plugins that end a child which imports them alone, and rows, of several plugins or of a study, that end one which asks for
    them alone. Nothing where the full model's plugin does."""
    found: dict[str, Failure] = {}
    texts = [text.strip() for text in job.options.plugins.split(",") if "+" in text]
    for name in dict.fromkeys((FULL, *manager().names())):
        answer = _alone(replace(job, look_only=True), (FULL, name))
        if isinstance(answer, Failure):
            found[name] = answer
        elif answer is not None:
            texts += answer.only_named
        if FULL in found:
            return {}
    for text in dict.fromkeys(texts):
        names = [parse(part).plugin for part in text.split("+")]
        if not found.keys() & {text, *names}:
            asked = replace(job, options=replace(job.options, plugins=text, study=()))
            answer = _alone(asked, (FULL, *names))
            if isinstance(answer, Failure):
                found[text] = answer
    return found


def _alone(job: Job, plugins: Collection[str]) -> Resolved | Failure | None:
    """What a child answers that imports only these, or how it ends; None if it refuses the question."""
    others = dict.fromkeys(set(manager().names()) - set(plugins), _NOT_NOW)
    soon = replace(job.options, timeout=min(job.options.timeout, children.PATIENCE))
    try:
        return children.answer_of(replace(job, options=soon, left_out={**others, **job.left_out}), Resolved)
    except DiedError as died:
        return replace(died.failure, reason=f"asked alone, {died.failure.reason}")
    except UserError:  # said again where all are asked
        return None


def calibrated(job: Job) -> Calibrated:
    """The offline passes of the job's rows."""
    try:
        return children.answer_of(job, Calibrated)
    except DiedError as died:
        if len(job.rows) == 1:
            return Calibrated(rows={}, runs={}, failures={job.rows[0]: died.failure})
    each = [calibrated(replace(job, rows=(row,))) for row in job.rows]
    return Calibrated(
        rows={asked: row for one in each for asked, row in one.rows.items()},
        runs={asked: run for one in each for asked, run in one.runs.items()},
        failures={asked: failure for one in each for asked, failure in one.failures.items()},
        codes={asked: code for one in each for asked, code in one.codes.items()},
    )
