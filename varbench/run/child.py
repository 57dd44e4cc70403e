"""What a child process does, once it is born: the job that lies in a file."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

from varbench.base import variables
from varbench.base.devices import use_device
from varbench.plan import presets
from varbench.record import decode
from varbench.run.channel import Channel
from varbench.run.messages import Done, Failed, Job, Told
from varbench.run.reasons import of_exception

COMPUTE = ("making", "scoring", "training", "calibrating")
"""Tasks that use the run's device."""


def main(path: str, reading: int, writing: int) -> int:
    """The exit code. The two numbers are its pipes."""
    job = decode(Job, json.loads(Path(path).read_bytes()), "job")
    channel = Channel(reading, writing)
    if job.task != "making":
        channel.send(Told(job=job.digest))
    if job.options.memory_limit is not None:
        _limit_memory(round(job.options.memory_limit * 2**30))
    os.environ[variables.FOLDER] = job.folder
    presets.of_sizes(job.model)  # they may have been read off a file, and are then no preset's
    try:
        if job.task in COMPUTE and job.options.device.startswith("cuda:"):
            use_device(job.options.device)
        importlib.import_module(f"varbench.run.tasks.{job.task}").run(job, channel)
    except (Exception, SystemExit) as error:
        channel.send(Failed(failure=of_exception(error), last=True))
        return 1
    channel.send(Done())
    return 0


def _limit_memory(limit: int) -> None:
    """Makes an allocation beyond the limit fail in this process, before the machine runs out of memory."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
