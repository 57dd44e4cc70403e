"""How much a process was kept from running while it was timed, read from outside it.

Two spinning threads that meet at thousands of barriers a call turn a short stall of one into a long call. So a call is
judged by what the system says of its threads, never by its own time. Linux only; elsewhere nothing is known.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HELD_UP = 0.01
"""A call that waited for a processor longer than this share of its time is taken again."""

STARVED = 0.95
"""So is one whose threads were on a processor for less than this share of what is usual in quiet calls of the row, for each
second of its time: who is throttled waits in no queue. A slow clock takes longer and is as busy."""


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


def _ticks() -> int:
    return int(os.sysconf("SC_CLK_TCK"))
