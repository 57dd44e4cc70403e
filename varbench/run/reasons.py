"""Tells apart why a row failed: inside a child by the exception, outside by how the process ended."""

from __future__ import annotations

import re
import signal
import traceback
from pathlib import Path

from varbench.errors import PlanError, UserError, WrongOutputError
from varbench.record import Status
from varbench.record.failure import Failure

_HOST_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't|not enough)|bad_alloc|Cannot allocate memory|out of memory: .*\bhost\b|"
    r"could not create a (memory object|primitive)|unable to mmap|failed to map segment|"
    r"SystemError: .*(without exception set|without setting an exception)",  # an interpreter that could not make the error
    re.IGNORECASE,
)
_DEVICE_MEMORY = re.compile(r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


def of_exception(error: BaseException) -> Failure:
    """The failure that an exception of a row stands for."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".removesuffix(": ")
    status = Status.FAILED
    if isinstance(error, WrongOutputError):
        status, text = Status.WRONG_OUTPUT, str(error)
    elif isinstance(error, PlanError):
        status, text = Status.UNSUPPORTED, str(error)
    elif type(error).__name__ == "OutOfMemoryError" or _DEVICE_MEMORY.search(text):
        status = Status.OUT_OF_MEMORY_DEVICE
    elif isinstance(error, MemoryError) or _HOST_MEMORY.search(text):
        status = Status.OUT_OF_MEMORY_HOST
    elif isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, SystemExit):
        text = f"a plugin called sys.exit({error.code!r})"
    return Failure(status=status, reason=text, traceback="".join(traceback.format_exception(error)))


def of_exit(code: int, *, stderr: str, oom_kills: int | None) -> Failure:
    """Why a child ended that sent no reason.

    `oom_kills` is how many processes the kernel's out-of-memory killer ended meanwhile; None where it does not say.
    """
    memory = _HOST_MEMORY.search(stderr)
    if code >= 0:
        if memory:
            return Failure(status=Status.OUT_OF_MEMORY_HOST, reason=f"the child ended with {code}: {memory.group()}")
        return Failure(status=Status.CRASHED, reason=f"the child ended with exit code {code} before it was done")
    number = -code
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL and oom_kills != 0:
        who = "the kernel's out-of-memory killer" if oom_kills else "something, probably the out-of-memory killer"
        return Failure(status=Status.OUT_OF_MEMORY_HOST, reason=f"the child was killed by {who} (SIGKILL)")
    if memory:
        return Failure(status=Status.OUT_OF_MEMORY_HOST, reason=f"the child ended by {name}: {memory.group()}")
    return Failure(status=Status.CRASHED, reason=f"the child was ended by {name}")


def oom_kills() -> int | None:
    """How often the kernel has killed for memory so far, here; None where it does not say."""
    for path, key in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == key and value.strip().isdigit():
                return int(value)
    return None
