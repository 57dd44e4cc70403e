"""Whether the full model beside rows was slowed: held against the full model in processes that hold no other plugin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from varbench.base import stats
from varbench.measure.pairs import Pair
from varbench.record.options import FEWEST_ROUNDS
from varbench.run.findings import Findings
from varbench.run.prepare import RowInRun, Run

SURE = 0.001
"""Of a thousand honest rows one may look so by chance."""

SLOWER = {"throughput": 0.05, "latency": 0.1}
"""The full model beside a row may take longer than alone by this share. A call of one image takes 2 % longer where other rows
have run just before."""

SLOWER_ONCE = 0.25
"""And by this where processes were too few to know how much luck differs between them."""

Both = tuple[float, float]
"""Seconds of a call beside rows, and alone."""


@dataclass
class _Process:
    """One that timed rows."""

    weights: str
    pairs: list[Both]
    plugins: set[str] = field(default_factory=set)
    """Whatever ran there may have slowed it."""


def slowed(run: Run, row: RowInRun, found: Mapping[str, Findings], regime: str) -> str | None:
    """Why what the row's speedup is against is not to be believed.

    Its own processes are looked at together, and for each plugin that ran in them all processes where that ran. How much luck
    differs between processes is told by all of the run.
    """
    processes = _processes(run, found, regime)
    own = {one.oversight.secret for one in found[row.name].speed.values() if one.oversight} & processes.keys()
    suspects = [own]
    for plugin in sorted({plugin for name in own for plugin in processes[name].plugins}):
        suspects.append({name for name, process in processes.items() if plugin in process.plugins})
    for names in suspects:
        some = [processes[name].pairs for name in sorted(names)]
        others: dict[str, list[list[Both]]] = {}
        for name in processes.keys() - names:
            others.setdefault(processes[name].weights, []).append(processes[name].pairs)
        if is_slowed(some, list(others.values()), slower=SLOWER[regime]):
            beside, alone = (stats.median([pair[place] for pairs in some for pair in pairs]) for place in (0, 1))
            return (
                f"the full model takes {beside:.3f} s in the row's process, and {alone:.3f} s in one without the plugins: what "
                "the speedup is against was slowed"
            )
    return None


def _processes(run: Run, found: Mapping[str, Findings], regime: str) -> dict[str, _Process]:
    """By the secret that each one's calls were drawn from."""
    processes: dict[str, _Process] = {}
    for name, known in found.items():
        row = run.rows[name].resolved
        for one in known.speed.values():
            pairs = list(_both(one.alone.get(regime, ())))
            if one.oversight is not None and pairs:
                process = processes.setdefault(one.oversight.secret, _Process(weights=row.weight_set, pairs=pairs))
                process.plugins |= {plugin.name for plugin in row.plugins}
    return processes


def _both(pairs: Sequence[Pair]) -> Iterator[Both]:
    for pair in pairs:
        assert pair.full is not None
        yield pair.full.times.end_to_end, pair.row.times.end_to_end


def is_slowed(
    processes: Sequence[Sequence[Both]],
    others: Sequence[Sequence[Sequence[Both]]] = (),
    *,
    slower: float = SLOWER["throughput"],
) -> bool:
    """`others` are further processes of the run, by their weights."""
    logs = [[math.log(beside / alone) for beside, alone in pairs] for pairs in processes]
    if len(logs) < FEWEST_ROUNDS:
        return _are_above([log for some in logs for log in some], SLOWER_ONCE, ())
    alike = [[stats.median([math.log(beside / alone) for beside, alone in pairs]) for pairs in some] for some in others]
    return _are_above([stats.median(some) for some in logs], slower, alike)


def _are_above(logs: Sequence[float], slower: float, alike: Sequence[Sequence[float]]) -> bool:
    if len(logs) < FEWEST_ROUNDS or stats.median(logs) <= math.log1p(slower):
        return False
    return stats.surely_above(logs, 0.0, chance=SURE, alike=alike)
