"""How much a process was kept from running while it was timed, read from outside it.

Two spinning threads that meet at thousands of barriers a call turn a short stall of one into a long call. So a call is
judged by what the system says of its threads, never by its own time. Linux only; elsewhere nothing is known.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from varbench.measure.environment import affinity

HELD_UP = 0.01
"""A call that waited for a processor by this share of its time longer than calls of its process do anyway is taken again."""

STEADY = 0.02
"""What they may wait anyway: a system's own services take a little from every call alike, which a ratio does not show."""

STARVED = 0.95
"""So is one whose threads were on a processor for less than this share of what is usual in quiet calls of the row, for each
second of its time: who is throttled waits in no queue. A slow clock takes longer and is as busy."""

PATIENCE = 2.0
"""Seconds that a quiet moment is waited for."""

_WINDOW = 0.05
_BUSY = 0.3
"""Processors that others may keep busy over such a window: it is five ticks of the system's clock, and one may be the last of a
call of ours."""

_IN_VAIN = 3
"""So often in a row nothing quiet came: it will not."""


@dataclass(frozen=True, kw_only=True)
class Strain:
    """How long the threads of one call ran and waited."""

    cpu_seconds: float
    waited_seconds: float
    """Ready to run, and not running: the run-queue delay of all threads."""
    stolen_seconds: float
    """Taken from the whole machine by its host."""
    switches: int
    """How often a thread was taken off its processor before it was done."""

    def held_up(self, wall: float) -> float:
        """The share of a call's time that it was kept from running."""
        return max(self.waited_seconds, self.stolen_seconds) / wall


@dataclass(frozen=True)
class Reading:
    """Counters of a process as they are now."""

    cpu: int
    waited: int
    stolen: int
    switches: int

    def until(self, later: Reading) -> Strain:
        return Strain(
            cpu_seconds=(later.cpu - self.cpu) / 1e9,
            waited_seconds=max(0, later.waited - self.waited) / 1e9,
            stolen_seconds=(later.stolen - self.stolen) / _ticks(),
            switches=max(0, later.switches - self.switches),
        )


def read(pid: int) -> Reading | None:
    """The counters of all threads of a process; None where the system does not show them."""
    cpu = waited = switches = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            on_cpu, in_queue, _ = task.joinpath("schedstat").read_text().split()
            cpu, waited = cpu + int(on_cpu), waited + int(in_queue)
            switches += int(task.joinpath("status").read_text().rpartition("nonvoluntary_ctxt_switches:")[2])
        with open("/proc/stat") as file:
            stolen = int(file.readline().split()[8])
    except (OSError, ValueError, IndexError):
        return None
    return Reading(cpu, waited, stolen, switches)


def used_seconds(pid: int) -> float | None:
    """Processor time of a process so far, with threads and children that have ended and children that live; None where it is
    not shown."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return None
    children: list[str] = []
    for task in tasks:
        with contextlib.suppress(OSError):  # it has ended meanwhile, or the system does not name them
            children += task.joinpath("children").read_text().split()
    return sum(map(int, times)) / _ticks() + sum(used_seconds(int(child)) or 0.0 for child in children)


def busy_seconds() -> tuple[float, float] | None:
    """What the processors that this process may run on have worked so far, and the time now; None where it is not shown."""
    mine = {f"cpu{number}" for number in affinity() or ()}
    try:
        with open("/proc/stat") as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
        worked = [sum(map(int, (*numbers[:3], *numbers[5:8]))) for name, *numbers in lines if name in mine]
    except (OSError, ValueError, IndexError):
        return None
    return (sum(worked) / _ticks(), time.monotonic()) if worked else None


class Quiet:
    """Waits until nobody else computes, before calls that are timed: a neighbour that rests now and then is let work first."""

    def __init__(
        self,
        read: Callable[[], tuple[float, float] | None] = busy_seconds,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read, self._sleep = read, sleep
        self._in_vain = 0

    def hope(self) -> None:
        """Tries once more, though it was given up: a new process is timed, and the neighbour may be gone."""
        self._in_vain = min(self._in_vain, _IN_VAIN - 1)

    def wait(self) -> bool:
        """Whether quiet moments come; each is waited for `PATIENCE` at most, and none at all once that was in vain a few times."""
        if self._in_vain >= _IN_VAIN:
            return False
        if (before := self._read()) is None:
            return True
        began = before[1]
        while before[1] - began < PATIENCE:
            self._sleep(_WINDOW)
            now = self._read()
            if now is None or now[0] - before[0] <= _BUSY * (now[1] - before[1]):
                self._in_vain = 0
                return True
            before = now
        self._in_vain += 1
        return self._in_vain < _IN_VAIN


def _ticks() -> int:
    return int(os.sysconf("SC_CLK_TCK"))
