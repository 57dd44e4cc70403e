"""A child process with a time limit: started in a group of its own, waited for without spinning, ended as a group."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varbench.record import Status
from varbench.run.reasons import Failure, of_exit, oom_kills

TAIL = 40
"""Lines of stderr that a record keeps."""

_GRACE = 10.0
"""Seconds that an ended child may take to be gone."""

Event = dict[str, Any]
Command = Callable[[int], list[str]]


@dataclass
class Ended:
    """Everything that a child has said, and how it ended."""

    events: list[Event] = field(default_factory=list)
    stderr_tail: str = ""
    exit_code: int = 0
    failure: Failure | None = None
    """Why the child did not come to its end; None when it did."""
    seconds: float = 0.0

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def at(self) -> str | None:
        """The row that the child was at when it said its last word."""
        for event in reversed(self.events):
            if event["event"] == "at":
                return str(event["row"])
            if event["event"] in ("result", "error") and event.get("row") is not None:
                return None
        return None


_KEEP = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"}
"""Freed memory stays with the process: asking the system for every temporary anew costs a tenth of the time."""


def variables(*, memory: bool) -> dict[str, str]:
    """A child's environment, where the user has not set these. One that measures memory gives back what it frees."""
    return {**({} if memory else _KEEP), **os.environ}


def job_command(job: Path) -> Command:
    return lambda fd: [sys.executable, "-m", "varbench.run.child", str(job), str(fd)]


def run_child(
    command: Command,
    *,
    log: Path,
    timeout: float,
    variables: dict[str, str] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Runs a child to its end. `command` makes its command line from the number of the pipe on which it speaks;
    `timeout` is how long it may go without a word there or on stderr."""
    reading, writing = os.pipe()
    began, kills = time.monotonic(), oom_kills()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(
            command(writing),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
            env=variables,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    ended = Ended()
    try:
        with open(log, "ab") as written:
            silent = _listen(process, reading, ended, written, timeout, on_event, on_line)
        if silent:
            ended.failure = Failure(
                status=Status.TIMEOUT, reason=f"nothing was heard of the row for {timeout:g} s, the limit of --timeout"
            )
            _kill(process)
        try:
            ended.exit_code = process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            _kill(process)
            ended.exit_code = process.wait()
    finally:
        _kill(process)  # whatever the child has left behind
        process.wait()
        os.close(reading)
        if process.stdout:
            process.stdout.close()
    ended.seconds = time.monotonic() - began
    if ended.failure is None and not ended.of("done"):
        now = oom_kills()
        ended.failure = of_exit(
            ended.exit_code, stderr=ended.stderr_tail, oom_kills=None if now is None or kills is None else now - kills
        )
    return ended


def _listen(
    process: subprocess.Popen[bytes],
    reading: int,
    ended: Ended,
    written: Any,
    timeout: float,
    on_event: Callable[[Event], None],
    on_line: Callable[[str], None],
) -> bool:
    """Reads both pipes until the child closes its own; whether it was silent for too long."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    buffers = {reading: b"", output: b""}
    tail: list[str] = []
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        open_pipe = True
        while open_pipe:
            ready = selector.select(timeout)
            if not ready:
                return True
            for key, _ in ready:
                data = _read(key.fd)
                if key.fd == output:
                    written.write(data)
                    written.flush()
                for line in _lines(buffers, key.fd, data):
                    if key.fd == reading:
                        event = json.loads(line)
                        ended.events.append(event)
                        on_event(event)
                    else:
                        tail = [*tail[-TAIL + 1 :], line.decode(errors="replace")]
                        on_line(tail[-1])
                if not data:
                    selector.unregister(key.fd)
                    open_pipe = open_pipe and key.fd != reading
    rest = buffers[output] + _drain(output)
    written.write(rest[len(buffers[output]) :])
    tail += rest.decode(errors="replace").splitlines()
    ended.stderr_tail = "\n".join(tail[-TAIL:])
    return False


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def _drain(fd: int) -> bytes:
    """What is in the pipe now; a grandchild may hold it open, so its end is not waited for."""
    found = b""
    with contextlib.suppress(OSError):
        while data := _read(fd):
            found += data
    return found


def _lines(buffers: dict[int, bytes], fd: int, data: bytes) -> Iterator[bytes]:
    *whole, buffers[fd] = (buffers[fd] + data).split(b"\n")
    yield from whole


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
