"""Compares what a child runs with what its parent prepared. Any difference makes the row invalid, and both values are shown."""

from __future__ import annotations

from varbench.run.children import not_the_job
from varbench.run.identity import plugin_hash
from varbench.run.messages import Job, Ready, Trained
from varbench.run.prepare import RowInRun, Run


def mismatches(run: Run, row: RowInRun, loaded: Ready, trained: Trained | None, *, asked: Job) -> list[str]:
    """Settings, plans, plugins and weights, as the child says they are, beside what was prepared."""
    found = []
    if loaded.job != asked.digest:
        found.append(not_the_job(loaded.job, asked=asked.digest))
    if row.plan is not None and (ran := loaded.plans.get(row.name)) != row.plan.digest:
        found.append(f"a child compiled {_shown('plan', ran)}, and {row.plan.digest[:12]} was prepared")
    for plugin, version in zip(row.resolved.plugins, row.identity.plugins, strict=True):
        theirs = loaded.plugin_files.get(plugin.name, ())
        if theirs[:1] != plugin.files[:1]:
            found.append(
                f"a child imported {plugin.name} from {_first(theirs)}, and {_first(plugin.files)} was prepared"
            )
        if (now := plugin_hash(plugin)) != version.code_hash:
            found.append(
                f"the code of {plugin.name} changed meanwhile: {str(now)[:12]}, and {str(version.code_hash)[:12]} was prepared"
            )
    expected = {**run.hashes, **(trained.hashes if trained else {})}
    for part in sorted(expected) if run.files is not None else ():
        loads = part in loaded.weights or part in _needed(row, trained)
        if loads and (its := loaded.weights.get(part)) != expected[part]:
            found.append(f"a child loaded {_shown(part, its)}, and {expected[part][:12]} was prepared")
    return found


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
