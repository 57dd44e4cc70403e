"""A child process with a time limit: started in a group of its own, heard without spinning, ended as a group."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from varbench.base.whole_files import write_whole
from varbench.record import Status, encode
from varbench.record.failure import Failure, RowError
from varbench.run.messages import Alive, Failed, Job, Message, from_line, to_line
from varbench.run.reasons import of_exit, oom_kills

TAIL = 40
"""Lines of stderr that a record keeps."""

_GRACE = 10.0
"""Seconds that an ended child may take to be gone."""

_KEEP = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"}
"""Freed memory stays with the process: asking the system for every temporary anew costs a tenth of the time."""

Command = Callable[[int, int], list[str]]
"""A child's command line, from the numbers of the pipes that it reads and writes."""


class ChildEndedError(Exception):
    """The child is gone, or was ended; what it was doing then is to blame."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Child:
    """One child. `ask` says something and hears the answer; `hear` waits for the next word; leaving the block ends it."""

    def __init__(
        self,
        command: Command,
        *,
        log: Path,
        timeout: float,
        on_alive: Callable[[str], None] = lambda text: None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._timeout, self._on_alive, self._on_line = timeout, on_alive, on_line
        self._kills = oom_kills()
        self._tail: list[str] = []
        self._buffers: dict[int, bytes] = {}
        self._heard: list[bytes] = []
        self.exit_code: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        asks, self._writing = os.pipe()
        self._reading, answers = os.pipe()
        with contextlib.ExitStack() as undo:
            for fd in (asks, answers):
                undo.callback(os.close, fd)  # the child's ends
            self._log = open(log, "ab")  # noqa: SIM115  (closed with the child)
            self._folder = tempfile.TemporaryDirectory(prefix="varbench-")
            self._process = subprocess.Popen(
                command(asks, answers),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(asks, answers),
                start_new_session=True,
                cwd=self._folder.name,  # nothing that lies in the user's folder is imported, or found by name
                env={**_KEEP, **os.environ},
            )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._selector = selectors.DefaultSelector()
        for fd in (self._reading, self._output):
            self._buffers[fd] = b""
            self._selector.register(fd, selectors.EVENT_READ)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and self.exit_code is None:
            # An interrupted training keeps what it has; anything else has nothing left to say.
            self._signal(signal.SIGINT if kind is KeyboardInterrupt else signal.SIGKILL)
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr_tail(self) -> str:
        return "\n".join(self._tail)

    def ask(self, message: Message) -> Any:
        """The answer; `RowError` where the row failed, `ChildEndedError` where the process is lost with it."""
        line = to_line(message)
        try:
            while line:
                line = line[os.write(self._writing, line) :]
        except BrokenPipeError:
            pass  # it is gone; hearing tells why
        return self.hear()

    def hear(self) -> Any:
        """The child's next word."""
        while True:
            message = from_line(self._line())
            if isinstance(message, Alive):
                self._on_alive(message.text)
            elif isinstance(message, Failed):
                if message.last:
                    self.end()
                    raise ChildEndedError(message.failure)
                raise RowError(message.failure)
            else:
                return message

    def _line(self) -> bytes:
        while not self._heard:
            ready = self._selector.select(self._timeout)
            if not ready:
                self._lost(
                    Failure(
                        status=Status.TIMEOUT,
                        reason=f"nothing was heard of the row for {self._timeout:g} s, the limit of --timeout",
                    )
                )
            for key, _ in ready:
                self._take(key.fd, _read(key.fd))
        return self._heard.pop(0)

    def _take(self, fd: int, data: bytes) -> None:
        if not data:
            self._selector.unregister(fd)
            if fd == self._reading and not self._heard:
                self._lost(None)
            return
        *whole, self._buffers[fd] = (self._buffers[fd] + data).split(b"\n")
        if fd == self._reading:
            self._heard += whole
            return
        self._log.write(data)
        self._log.flush()
        for line in whole:
            self._tail = [*self._tail[-TAIL + 1 :], line.decode(errors="replace")]
            self._on_line(self._tail[-1])

    def _lost(self, failure: Failure | None) -> None:
        """The child does not answer, or is gone: it is ended, and why is said."""
        if failure is not None:
            self._kill()
        self.end()
        if failure is None:
            now = oom_kills()
            kills = None if now is None or self._kills is None else now - self._kills
            assert self.exit_code is not None
            failure = of_exit(self.exit_code, stderr=self.stderr_tail, oom_kills=kills)
        raise ChildEndedError(failure)

    def end(self) -> None:
        """Lets the child come to its end, and then ends whatever is left of it and of what it started."""
        if self.exit_code is not None:
            return
        os.close(self._writing)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._kill()
        self.exit_code = self._process.wait()
        # What it still said; a grandchild may hold the pipe open, so its end is not waited for.
        with contextlib.suppress(OSError):
            while data := _read(self._output):
                self._take(self._output, data)
        self._take(self._output, b"\n") if self._buffers[self._output] else None
        self._selector.close()
        os.close(self._reading)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def job_command(job: Path) -> Command:
    return lambda reading, writing: [
        sys.executable, "-P", "-m", "varbench.run.child", str(job.resolve()), str(reading), str(writing)
    ]  # fmt: skip


def start(
    job: Job,
    *,
    folder: Path,
    log: Path,
    on_alive: Callable[[str], None] = lambda text: None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Child:
    """A child for a job, which lies in the folder under a name that says nothing of it."""
    path = folder / f"{os.urandom(8).hex()}.json"
    write_whole(path, json.dumps(encode(job, "job")).encode())
    return Child(job_command(path), log=log, timeout=job.options.timeout, on_alive=on_alive, on_line=on_line)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""
