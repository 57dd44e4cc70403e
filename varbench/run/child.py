"""What a child process does: `python -m varbench.run.child JOB.json FD`. It reports line by line on the pipe FD."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from varbench.run.channel import Channel, EndOfChild
from varbench.run.jobs import Job
from varbench.run.reasons import of_exception

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    job = Job.read(Path(arguments[0]))
    channel = Channel(int(arguments[1]))
    _die_with_parent()
    if job.options.memory_limit is not None:
        _limit_memory(round(job.options.memory_limit * 2**30))
    try:
        from varbench.run import tasks

        tasks.run(job, channel)
    except EndOfChild:
        pass
    except (Exception, SystemExit) as error:
        channel.error(None, of_exception(error))
        return 1
    channel.say("done")
    return 0


def _die_with_parent() -> None:
    """A parent that is killed takes its children along; elsewhere than on Linux they end at the next word they say."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent == 1 or os.getppid() != parent:  # it was gone before we asked
            os._exit(1)


def _limit_memory(limit: int) -> None:
    """What a row allocates beyond this fails in the row, and not on the whole machine."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
