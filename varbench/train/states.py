"""States of a training: saved whole, now and then and when it is interrupted, and refused where they belong to another."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

from varbench.base.whole_files import whole_file
from varbench.errors import CheckpointError
from varbench.train.state_parts import folder_of, latest

_SHARE = 20
"""Training goes on for at least this many times as long as the last save took."""


class Checkpoints:
    """Where a training's state is saved, and when the next save is due.

    By time and not by steps: a training of few slow steps would never come to its hundredth.
    """

    def __init__(self, path: Path, *, every_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._every_seconds, self._clock = every_seconds, clock
        self._saved_at, self._took = clock(), 0.0

    def due(self) -> bool:
        return self._clock() - self._saved_at >= max(self._every_seconds, _SHARE * self._took)

    def save(self, state: dict[str, Any]) -> None:
        self.written(lambda: save_state(self.path, state))

    def written(self, write: Callable[[], None], *, also: Callable[[], None] = lambda: None) -> None:
        """Write, and do what belongs to every save; how long both take decides when the next is due."""
        began = self._clock()
        write()
        also()
        self._saved_at = self._clock()
        self._took = self._saved_at - began


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C is noted and not raised, so that a step can be finished and saved; gives whether it was pressed.

    Pressed again, it is raised at once.
    """
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    # Only the main thread is told of signals; and who has switched Ctrl-C off is left alone.
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def save_state(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as file:
        _save(state, file)


def load_state(path: Path, *, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A saved training state, or None where there is none. A state of another training is refused, not mixed in."""
    if not path.exists():
        return None
    try:
        # Mapped, so that processes of a machine that resume together read one copy of it, and hold none.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a training state ({error}). Delete it to begin again."
        ) from error
    check_same(state, path, identity=identity)
    return state


def check_same(state: dict[str, Any], path: Path, *, identity: dict[str, Any]) -> None:
    if differ := [*differences({name: state["identity"].get(name) for name in identity}, identity)]:
        theirs, ours = (", ".join(f"{one[0]} {one[place]!r}" for one in differ) for place in (1, 2))
        raise CheckpointError(
            f"{path} belongs to a training with {theirs}, and this one has {ours}. Use another --out, or delete it to "
            "begin again."
        )


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where two descriptions of a training differ: what it is called, their value and ours."""
    for name in {**ours, **theirs}:
        one, other = theirs.get(name), ours.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other)
        elif one != other:
            yield name, one, other


def another_state(own: Path, *, curriculum: str, budget: dict[str, Any]) -> str | None:
    """What to say of the latest state that another training of this name left beside the folder of one's own, where that has
    none: who changed an option unawares would miss its steps."""
    if own.exists() or latest(own):
        return None
    others = own.parent.parent.glob(f"*/{own.name}*")
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        if path not in (whole := path.with_name(own.name), folder_of(whole)):
            continue
        try:
            found = latest(whole) if path.is_dir() else None
            state = found[1] if found else load_state(path, identity={})
        except (CheckpointError, ValueError):
            continue
        if state is not None and state["identity"].get("curriculum") == curriculum:
            differ = (
                f"{name} {theirs}, not {ours}"
                for name, theirs, ours in differences(state["identity"]["budget"], budget)
            )
            why = ", ".join(differ) or "another start, data or schedule"
            return f"{state['step']:,} steps of another training ({why}) lie in {path}; this one begins anew"
    return None


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    saver: Callable[..., None] = torch.save
    try:
        saver(state, file)
    except RuntimeError as error:
        # torch reports a failed write as a RuntimeError; writing one more byte brings out the system's own reason.
        file.write(b"\0" * 4096)
        file.flush()
        raise error
