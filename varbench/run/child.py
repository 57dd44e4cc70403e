"""What a child process does: `python -P -m varbench.run.child JOB.json READ WRITE`. The two numbers are its pipes."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path

from varbench import rows
from varbench.plan import presets
from varbench.record import decode
from varbench.run.channel import Channel
from varbench.run.messages import Done, Failed, Job
from varbench.run.reasons import of_exception

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    job = decode(Job, json.loads(Path(arguments[0]).read_bytes()), "job")
    channel = Channel(int(arguments[1]), int(arguments[2]))
    die_with_parent()
    if job.options.memory_limit is not None:
        _limit_memory(round(job.options.memory_limit * 2**30))
    os.environ[rows.FOLDER_VARIABLE] = job.folder
    presets.of_sizes(job.model)  # they may have been read off a file, and are then no preset's
    try:
        importlib.import_module(f"varbench.run.tasks.{job.task}").run(job, channel)
    except (Exception, SystemExit) as error:
        channel.send(Failed(failure=of_exception(error), last=True))
        return 1
    channel.send(Done())
    return 0


def die_with_parent() -> None:
    """On Linux the child is killed when its parent dies; elsewhere it ends when it next writes to the closed pipe."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent == 1 or os.getppid() != parent:  # it was gone before we asked
            os._exit(1)


def _limit_memory(limit: int) -> None:
    """Makes an allocation beyond the limit fail in this process, before the machine runs out of memory."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
