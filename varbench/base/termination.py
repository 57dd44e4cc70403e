"""The signal by which batch systems, containers and service managers end a program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Handles SIGTERM like Ctrl-C, whatever that does at the time, so that it too saves what is there and says how to go on."""
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(ctrl_c):  # switched off, as for a job in the background
            raise KeyboardInterrupt
        ctrl_c(number, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def terminated_at_once() -> Iterator[None]:
    """Lets SIGTERM end the process as the system does, while nothing is there that could be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
