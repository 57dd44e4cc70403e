"""A child process with a time limit: it is started in a process group of its own, and the whole group is ended with it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from varbench.base.whole_files import write_whole
from varbench.errors import UserError
from varbench.measure.calls import Reply, Request
from varbench.record import Status, encode
from varbench.record.failure import Failure, RowError
from varbench.run import nursery
from varbench.run.messages import Alive, Failed, Job, Message, Told, from_line, to_line
from varbench.run.nursery import Ends
from varbench.run.reasons import of_exit, oom_kills

TAIL = 40
"""Lines of stderr that a record keeps."""

PATIENCE = 120.0
"""Seconds that a child may be silent which prepares the run, on a machine that is busy."""

_GRACE = 10.0
"""Seconds that an ended child may take to be gone."""

Answer = TypeVar("Answer")


class Process(Protocol):
    """What a child is known by: the first one of a process group of its own."""

    @property
    def pid(self) -> int: ...

    def wait(self, timeout: float | None = None) -> int: ...


class ChildEndedError(Exception):
    """The child ended, or had to be ended, before it gave its answer; `failure` says why."""

    def __init__(self, failure: Failure, *, exit_code: int | None = None, stderr_tail: str = "") -> None:
        super().__init__(failure.reason)
        self.failure, self.exit_code, self.stderr_tail = failure, exit_code, stderr_tail


class DiedError(UserError):
    """A child that was started for one question ended without an exception of its own; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Child:
    """One child. `ask` sends a message and returns the answer, `receive` waits for the next message, and leaving the `with`
    block ends the process."""

    def __init__(
        self,
        begin: Callable[[Ends], Process],
        *,
        log: Path,
        timeout: float,
        asked: str | None = None,
        on_alive: Callable[[Alive], None] = lambda alive: None,
    ) -> None:
        """`asked` is the digest of its job, which the child has to name before anything else; None expects no such word."""
        self._asked = asked
        self._timeout, self._on_alive = timeout, on_alive
        self._kills = oom_kills()
        self._tail: list[str] = []
        self._buffers: dict[int, bytes] = {}
        self._lines: list[bytes] = []
        self._spoke = time.monotonic()
        self._unwanted = 0
        self.exit_code: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, self._writing = os.pipe()
        self._reading, writing = os.pipe()
        self._output, output = os.pipe()
        with contextlib.ExitStack() as undo:
            for fd in (reading, writing, output):
                undo.callback(os.close, fd)  # the child's ends
            self._log = open(log, "ab")  # noqa: SIM115  (closed with the child)
            self._folder = tempfile.TemporaryDirectory(prefix="varbench-")
            self._process = begin(Ends(reading=reading, writing=writing, output=output, folder=self._folder.name))
        os.set_blocking(self._output, False)
        self._selector = selectors.DefaultSelector()
        for fd in (self._reading, self._output):
            self._buffers[fd] = b""
            self._selector.register(fd, selectors.EVENT_READ)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and self.exit_code is None:
            # An interrupted training saves its state first; anything else has nothing to save.
            self._signal(signal.SIGINT if kind is KeyboardInterrupt else signal.SIGKILL)
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr_tail(self) -> str:
        return "\n".join(self._tail)

    def make(self, request: Request) -> Reply:
        """What the process of a subject answers to this request."""
        self.tell(request)
        return self.reply_to(request)

    def reply_to(self, request: Request) -> Reply:
        """The answer to a request that it was told."""
        reply = self.receive(Reply)
        if lacking := reply.lacking(request):
            self._lost(Failure(status=Status.FAILED, reason=f"its process answered without {lacking}"))
        return reply

    def forget(self) -> None:
        """The answer to what it was told is not waited for any more; it is passed over when it comes."""
        self._unwanted += 1

    def ask(self, message: Message, kind: type[Answer]) -> Answer:
        """The answer. Raises `RowError` if the row failed, and `ChildEndedError` if the process ended too."""
        self.tell(message)
        return self.receive(kind)

    def tell(self, message: Message) -> None:
        line = to_line(message)
        try:
            while line:
                line = line[os.write(self._writing, line) :]
        except BrokenPipeError:
            pass  # the child is gone; `receive` finds out why

    def receive(self, kind: type[Answer]) -> Answer:
        """The child's next message that is more than a sign of life."""
        while True:
            message = self._message()
            if isinstance(message, Alive):
                self._on_alive(message)
            elif self._unwanted and not (isinstance(message, Failed) and message.last):
                self._unwanted -= 1
            elif isinstance(message, Failed):
                if message.last:
                    self.end()
                    raise self._ended(message.failure)
                raise RowError(message.failure)
            elif isinstance(message, kind):
                return message
            else:  # a plugin of its process wrote it
                sent = type(message).__name__
                self._lost(
                    Failure(status=Status.FAILED, reason=f"its process sent {sent} in the place of {kind.__name__}")
                )

    def _message(self) -> Any:
        self._check_job()
        return self._decoded(self._line())

    def _check_job(self) -> None:
        """Holds a child to its job by its first word; what it was told may have been written over."""
        if self._asked is None:
            return
        asked, self._asked = self._asked, None
        first = self._decoded(self._line())
        told = first.job if isinstance(first, Told) else "nothing it named"
        if told != asked:
            self._lost(Failure(status=Status.FAILED, reason=not_the_job(told, asked=asked)))

    def _decoded(self, line: bytes) -> Any:
        try:
            return from_line(line)
        except (ValueError, LookupError, TypeError) as error:  # a plugin may write where it should not
            what = f"{line[:60]!r} ({' '.join(str(error).split())})"
            self._lost(Failure(status=Status.FAILED, reason=f"its process sent what is no message: {what}"))

    def listen(self) -> bool:
        """Takes down what was said so far, without waiting for more; whether `receive` has an answer at once."""
        if not self._lines:
            self._listen(0)
        if self._lines:
            self._check_job()
        while self._lines and isinstance(alive := self._decoded(self._lines[0]), Alive):
            self._on_alive(alive)
            self._lines.pop(0)
        return bool(self._lines)

    def _line(self) -> bytes:
        while not self._lines:
            self._listen(self._timeout)
        return self._lines.pop(0)

    def _listen(self, seconds: float) -> None:
        ready = self._selector.select(seconds)
        now = time.monotonic()
        if ready:
            self._spoke = now
        elif now - self._spoke >= self._timeout:
            self._lost(
                Failure(
                    status=Status.TIMEOUT,
                    reason=f"nothing was heard of the row for {self._timeout:g} s, the limit of --timeout",
                )
            )
        for key, _ in ready:
            self._take(key.fd, _read(key.fd))

    def ends(self) -> tuple[int, ...]:
        """File descriptors on which something of it can arrive."""
        return tuple(key.fd for key in self._selector.get_map().values())

    def _take(self, fd: int, data: bytes) -> None:
        if not data:
            self._selector.unregister(fd)
            if fd == self._reading and not self._lines:
                self._lost(None)
            return
        *whole, self._buffers[fd] = (self._buffers[fd] + data).split(b"\n")
        if fd == self._reading:
            self._lines += whole
            return
        self._log.write(data)
        self._log.flush()
        for line in whole:
            self._tail = [*self._tail[-TAIL + 1 :], line.decode(errors="replace")]

    def _lost(self, failure: Failure | None) -> NoReturn:
        """Ends a child that does not answer (`failure`) or is gone (None), and raises why."""
        if failure is not None:
            self._kill()
        self.end()
        if failure is None:
            now = oom_kills()
            kills = None if now is None or self._kills is None else now - self._kills
            assert self.exit_code is not None
            failure = of_exit(self.exit_code, stderr=self.stderr_tail, oom_kills=kills)
        raise self._ended(failure)

    def _ended(self, failure: Failure) -> ChildEndedError:
        return ChildEndedError(failure, exit_code=self.exit_code, stderr_tail=self.stderr_tail)

    def end(self) -> None:
        """Gives the child a moment to finish, then kills what is left of it and of the processes it started."""
        if self.exit_code is not None:
            return
        os.close(self._writing)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._kill()
        self.exit_code = self._process.wait()
        # Read what it still wrote, without waiting for the pipe to close: a grandchild may hold it open.
        with contextlib.suppress(OSError):
            while data := _read(self._output):
                self._take(self._output, data)
        self._take(self._output, b"\n") if self._buffers[self._output] else None
        self._selector.close()
        os.close(self._reading)
        os.close(self._output)
        self._log.close()
        self._folder.cleanup()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.pid:
                os.killpg(self.pid, number)


def answer_of(job: Job, kind: type[Answer], *, if_it_crashes: str = "") -> Answer:
    """The answer of a child that is started for this one question; `UserError` if the question was wrong.

    A crash, a `DiedError`, says nothing of what was asked: its reason begins with what the caller gives, and ends with the last
    line of stderr.
    """
    with tempfile.TemporaryDirectory(prefix="varbench-") as folder:
        child = start(job, folder=Path(folder), log=Path(folder) / "log", patience=PATIENCE)
        try:
            with child:
                return child.receive(kind)
        except ChildEndedError as error:
            reason, died = error.failure.reason, error.failure.traceback is None
            if died:
                reason = if_it_crashes + with_last_line(reason, child.stderr_tail)
            limit = job.options.memory_limit
            # Where there is no memory, there is none to say so either: such a child may just end, or hang.
            ends = (Status.OUT_OF_MEMORY_HOST, Status.CRASHED, Status.TIMEOUT)
            if limit is not None and error.failure.status in ends:
                reason += f"; a child may take {limit:g} GiB, by --memory-limit: allow it more, or leave the limit out"
            raise (DiedError(replace(error.failure, reason=reason)) if died else UserError(reason)) from error


def not_the_job(told: str, *, asked: str) -> str:
    return f"a child was told to do {told[:12]}, and {asked[:12]} was asked of it"


def with_last_line(why: str, stderr: str) -> str:
    return "; ".join([why, *stderr.strip().splitlines()[-1:]])


def start(
    job: Job,
    *,
    folder: Path,
    log: Path,
    on_alive: Callable[[Alive], None] = lambda alive: None,
    threads: int | None = None,
    patience: float = 0.0,
) -> Child:
    """Starts a child for a job. What is no row's work may take `patience` seconds, whatever the limit for rows is.

    The job is a file in `folder` under a random name, which tells a plugin nothing about it.
    """
    path = folder / f"{os.urandom(8).hex()}.json"
    write_whole(path, json.dumps(encode(job, "job")).encode())
    return Child(
        lambda ends: nursery.bear(path, ends, threads=threads),
        log=log,
        timeout=max(job.options.timeout, patience),
        asked=None if job.task == "making" else job.digest,
        on_alive=on_alive,
    )


def wait_for_any(waiting: Collection[Child], *, seconds: float = 1.0) -> None:
    """Until something arrives of one of them, or a while has passed, so that a silent one is found out."""
    with selectors.DefaultSelector() as together:
        for child in waiting:
            for fd in child.ends():
                together.register(fd, selectors.EVENT_READ)
        together.select(seconds)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""
