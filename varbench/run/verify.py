"""Compares what a child runs with what its parent prepared. Any difference makes the row invalid, and both values are shown."""

from __future__ import annotations

import functools

from varbench.plan.trace import foreseen
from varbench.run.children import not_the_job
from varbench.run.findings import Findings, Seen
from varbench.run.messages import ChildCode, Job, Ready, Trained
from varbench.run.prepare import RowInRun, Run

_SCORED_WITH = (("reference", "data"), ("inception", "features"))
"""Options of which the first that is given is read."""


def mismatches(run: Run, row: RowInRun, loaded: Ready, trained: Trained | None, *, asked: Job) -> list[str]:
    """Settings, code, plans, plugins and weights, as the child says they are, beside what was prepared."""
    found = _other_code(run, row, loaded.code, "a child")
    if trained is not None:
        (by,) = (weights.trains for weights in run.weight_sets if row.name in weights.rows)
        found += _other_code(run, run.rows[str(by)], trained.code, "the child that trained")
    if row.calibrated_by is not None:
        found += _other_code(run, row, row.calibrated_by, "the child that calibrated")
    if loaded.job != asked.digest:
        found.append(not_the_job(loaded.job, asked=asked.digest))
    if row.plan is not None and (ran := loaded.plans.get(row.name)) != row.plan.digest:
        found.append(f"a child compiled {_shown('plan', ran)}, and {row.plan.digest[:12]} was prepared")
    expected = {**run.hashes, **(trained.hashes if trained else {})}
    for part in sorted(expected) if run.files is not None else ():
        loads = part in loaded.weights or part in _needed(row, trained)
        if loads and (its := loaded.weights.get(part)) != expected[part]:
            found.append(f"a child loaded {_shown(part, its)}, and {expected[part][:12]} was prepared")
    return found


def _other_code(run: Run, row: RowInRun, code: ChildCode | None, who: str) -> list[str]:
    if code is None:
        return [f"{who} did not say what code it runs"]
    found = []
    if code.measuring != run.code:
        found.append(f"{who} runs varbench's code {code.measuring[:12]}, and {run.code[:12]} was prepared")
    for plugin, version in zip(row.resolved.plugins, row.identity.plugins, strict=True):
        imported = f"{who} imported {plugin.name}"
        theirs = code.plugin_files.get(plugin.name, ())
        if theirs[:1] != plugin.files[:1]:
            found.append(f"{imported} from {_first(theirs)}, and {_first(plugin.files)} was prepared")
        if (its := code.plugin_hashes.get(plugin.name)) != version.code_hash:
            found.append(f"{imported} of code {str(its)[:12]}, and {str(version.code_hash)[:12]} was prepared")
    return found


def other_traces(run: Run, found: Findings) -> list[str]:
    """Calls that were timed or scored, of the row and of the full model beside it, that did not go as their plan says."""
    parts = (found.seen, *found.speed.values())
    seen = {traced for part in parts if part is not None for traced in part.traces}
    return [
        f"{one.images} images of {one.row} left the trace {one.sha256[:12] or 'that nobody told'}, and {expected[:12]} follows from "
        "its plan"
        for one in sorted(seen)
        if (expected := _foreseen(run.rows[one.row], one.images, run.options.dtype)) not in (None, one.sha256)
    ]


def other_contents(run: Run, seen: Seen | None) -> list[str]:
    """What a row's images were scored with that is not what was prepared: training may take hours in between."""
    if seen is None or seen.scored.quality is None:
        return []
    read, prepared = seen.scored.contents, run.contents
    needed = {next((one for one in either if one in prepared), None) for either in _SCORED_WITH}
    return [
        f"images were scored with {_shown(part, read.get(part))}, and {expected[:12]} was prepared"
        for part, expected in sorted(prepared.items())
        if (part in needed or part in read) and read.get(part) != expected
    ]


@functools.lru_cache(maxsize=4096)
def _foreseen(row: RowInRun, images: int, dtype: str) -> str | None:
    """The hash of what such a call leaves; None where that hangs on content."""
    if row.plan is None or row.plan.varies:
        return None
    return foreseen(row.plan, batch=images, dtype=dtype).digest


def _needed(row: RowInRun, trained: Trained | None) -> set[str]:
    """Parts whose weights the row runs on; its process may hold others beside."""
    if row.plan is not None:
        return {"vae", "main", *row.resolved.backbones}
    taught = {"main"} if row.resolved.taught_generator else set[str]()
    return {*taught, *(trained.hashes if trained else ())}


def _shown(what: str, value: str | None) -> str:
    return f"no {what}" if value is None else f"the {what} {value[:12]}"


def _first(files: tuple[str, ...]) -> str:
    return files[0] if files else "nowhere"
