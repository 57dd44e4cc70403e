"""Where children come from: a process that has loaded what each of them needs, torch above all, and copies itself for each.

To load costs two seconds of a processor, which a run of twenty children would pay twenty times. The nursery holds no plugin
and has computed nothing, so that a copy is what a new process would be: no thread, no pool, no state of a row before it.
`python -P -m varbench.run.nursery SOCKET PARENT` is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from varbench.base import variables

_READ_WHEN_USED = {"XDG_CACHE_HOME", "COLUMNS", "PYTEST_CURRENT_TEST"}
"""Variables that nothing looks at while it is loaded: a nursery serves whatever they are."""

_MOST = 2
"""Nurseries at a time: one for the machine's threads, and one for trainings of one thread each."""

_GRACE = 10.0
"""Seconds that the children of a nursery that is no longer needed may take to be gone."""

_NUMBER = struct.Struct("i")
_PR_SET_PDEATHSIG = 1

_open: dict[tuple[int, frozenset[tuple[str, str]]], _Nursery] = {}
"""By the process that started it, whose copies have no part in it, and by its variables."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What a child is given of its parent."""

    reading: int
    """The pipe that it is asked through."""
    writing: int
    """The one that it answers through."""
    output: int
    """Where its words go."""
    folder: str
    """Where it stands."""


class Newborn:
    """A child, in so far as `subprocess.Popen` shows one."""

    def __init__(self, news: int, nursery: subprocess.Popen[bytes]) -> None:
        """`news` is a pipe, on which its nursery tells its number and then its exit code."""
        self._news, self._nursery = news, nursery
        self._ended: int | None = None

    @cached_property
    def pid(self) -> int:
        """0 if it was never born."""
        return self._number() or 0

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises `TimeoutExpired`."""
        if self._ended is None:
            born = self.pid != 0  # told before its end
            if not select.select([self._news], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a child", timeout or 0)
            code = self._number() if born else None
            os.close(self._news)
            # Whoever ended the nursery has ended its children.
            self._ended = code if code is not None else self._nursery.wait() or -signal.SIGKILL
        return self._ended

    def _number(self) -> int | None:
        found = os.read(self._news, _NUMBER.size)
        return _NUMBER.unpack(found)[0] if found else None


def bear(job: Path, ends: Ends, *, threads: int | None) -> Newborn:
    """A child that does this job."""
    environment = {
        **variables.OF_PROCESSES,
        **os.environ,
        **({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
    }
    kind = (os.getpid(), frozenset(item for item in environment.items() if item[0] not in _READ_WHEN_USED))
    if kind in _open and not _open[kind].lives:
        _open.pop(kind).close()
    if kind not in _open:
        while len(_open) >= _MOST:
            _open.pop(next(iter(_open))).close()
        _open[kind] = _Nursery(environment, output=ends.output)
    return _open[kind].bear(job, ends, environment)


class _Nursery:
    """The parent's side."""

    def __init__(self, variables: dict[str, str], *, output: int) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,  # until all is loaded
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",  # nothing that lies in the user's folder is imported, or found by name
                env=variables,
            )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def bear(self, job: Path, ends: Ends, variables: dict[str, str]) -> Newborn:
        news, telling = os.pipe()
        request = json.dumps({"job": str(job.resolve()), "folder": ends.folder, "variables": variables})
        try:
            # If it has ended meanwhile the pipe says so: nobody holds its other end.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._control, [request.encode()], [ends.reading, ends.writing, ends.output, telling])
        finally:
            os.close(telling)
        return Newborn(news, self._process)

    def close(self) -> None:
        """It ends when its last child has."""
        self._control.close()

    def end(self) -> None:
        self.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@atexit.register
def end_all() -> None:
    """So that what they used counts as used by this process."""
    while _open:
        _open.popitem()[1].end()


def main(arguments: list[str]) -> int:
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    die_with(int(arguments[1]))
    _load()
    living: dict[int, int] = {}

    def tell(*_: object) -> None:
        """Says how children ended."""
        while living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            news = living.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(news, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(news)

    signal.signal(signal.SIGCHLD, tell)
    while True:
        request, fds, *_ = socket.recv_fds(control, 1 << 20, 4, socket.MSG_CMSG_CLOEXEC)
        if not request:
            break
        *ends, news = fds
        with _held_back(signal.SIGCHLD):
            pid = _copy()
            if pid == 0:
                for fd in (control.detach(), news, *living.values()):
                    os.close(fd)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            else:
                living[pid] = news
                with contextlib.suppress(BrokenPipeError):
                    os.write(news, _NUMBER.pack(pid))
        if pid == 0:
            code = _live(*ends, **json.loads(request))
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)  # to take modules apart takes a quarter of a second
        for fd in ends:
            os.close(fd)
    while living:
        time.sleep(0.1)
    os._exit(0)


def _load() -> None:
    """What cannot be loaded is the first child's to say, which then loads it itself."""
    from varbench.run import tasks

    for module in pkgutil.iter_modules(tasks.__path__):
        with contextlib.suppress(Exception):
            importlib.import_module(f"{tasks.__name__}.{module.name}")
    with contextlib.suppress(Exception):
        # Before there is a child: what it would find it could also have put there.
        importlib.import_module("varbench.model.c_kernels").built()
    gc.collect()
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _copy() -> int:
    with warnings.catch_warnings():
        # Libraries for linear algebra start threads when they are loaded, and see to them when a process is copied.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _live(reading: int, writing: int, output: int, *, job: str, folder: str, variables: dict[str, str]) -> int:
    """The life of a child."""
    nursery = os.getppid()
    os.setsid()
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    del sys.argv[1:]
    if numpy := sys.modules.get("numpy"):  # Python's own generator sees to itself
        numpy.random.seed()
    if kernels := sys.modules.get("varbench.model.c_kernels"):
        kernels.try_again()
    from varbench.run import child

    die_with(nursery)
    return child.main(job, reading, writing)


def die_with(parent: int) -> None:
    """On Linux the process is killed when its parent dies; elsewhere it ends when it next writes to the closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before we asked
            os._exit(1)


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
