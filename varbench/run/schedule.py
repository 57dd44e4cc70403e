"""Which children run, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from varbench import rows
from varbench.base.places import cache_folder
from varbench.record.options import Options
from varbench.run.jobs import Job
from varbench.run.prepare import Prepared, WeightSet


def base_job(options: Options, prepared: Prepared) -> Job:
    """What all jobs of a run share."""
    return Job(task="speed", options=options, rows=(), files=prepared.files, full=rows.FULL, inputs=prepared.inputs)


def training_jobs(base: Job, prepared: Prepared) -> Iterator[tuple[WeightSet, Job]]:
    """One child for each recipe."""
    for weights in prepared.weight_sets:
        if weights.trains is not None:
            yield weights, replace(base, task="train", rows=(weights.trains.name,))


def quality_jobs(base: Job, prepared: Prepared, wanted: frozenset[str]) -> Iterator[tuple[WeightSet, Job]]:
    """One child for each set of weights, the full model's first: the others are held against its images."""
    full_images = cache_folder() / "full-images" / f"{prepared.inputs}.npz"
    for weights in prepared.weight_sets:
        names = tuple(name for name in weights.rows if name in wanted)
        if names:
            yield (
                weights,
                replace(base, task="quality", rows=names, floors=rows.FULL in names, full_images=str(full_images)),
            )


def memory_jobs(base: Job, prepared: Prepared) -> Iterator[tuple[WeightSet, Job]]:
    """A fresh child for every row, since the peak of a process is the peak of all that it ever did."""
    for weights in prepared.weight_sets:
        for name in weights.rows:
            yield weights, replace(base, task="memory", rows=(name,))


def speed_jobs(base: Job, prepared: Prepared, *, round: int) -> Iterator[tuple[WeightSet, Job]]:
    """One child for each set of weights, in reversed order in every other round, rows reversed too."""
    sets = prepared.weight_sets[::-1] if round % 2 == 1 else prepared.weight_sets
    for weights in sets:
        names = weights.rows[::-1] if round % 2 == 1 else weights.rows
        job = replace(base, task="speed", rows=names, round=round, per_scale=round == 0 and not base.options.quick)
        yield weights, replace(job, energy=round == 0 and base.options.device.startswith("cuda"))
