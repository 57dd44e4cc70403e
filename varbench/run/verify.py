"""Compares what a child runs with what its parent prepared. Any difference makes the row invalid, and both values are shown."""

from __future__ import annotations

from varbench.run.identity import plugin_hash
from varbench.run.messages import Job, Ready, Trained
from varbench.run.prepare import RowInRun, Run


def mismatches(run: Run, row: RowInRun, loaded: Ready, trained: Trained | None, *, asked: Job) -> list[str]:
    """Settings, plans, plugins and weights, as the child says they are, beside what was prepared."""
    found = []
    if loaded.job != asked.digest:
        found.append(f"a child was told to do {loaded.job[:12]}, and {asked.digest[:12]} was asked of it")
    if row.plan is not None and (ran := loaded.plans.get(row.name)) not in (None, row.plan.digest):
        found.append(f"a child compiled the plan {str(ran)[:12]}, and {row.plan.digest[:12]} was prepared")
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
    for part, sha256 in loaded.weights.items():
        if run.files is not None and part in expected and sha256 != expected[part]:
            found.append(f"a child loaded {part} {sha256[:12]}, and {expected[part][:12]} was prepared")
    return found


def _first(files: tuple[str, ...]) -> str:
    return files[0] if files else "nowhere"
