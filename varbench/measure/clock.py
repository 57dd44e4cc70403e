"""Clocks, and when to stop. On CUDA the clock is events in the stream, read after one synchronise; on a CPU perf_counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Stop when both are reached: a count alone is too short for fast rows, a time alone too few for slow ones."""

    count: int
    seconds: float

    def reached(self, samples: list[float]) -> bool:
        return len(samples) >= self.count and sum(samples) >= self.seconds


class Clock(Protocol):
    name: str

    def mark(self) -> Any:
        """A point in time, in the stream of the device where it has one."""

    def between(self, first: Any, second: Any) -> float:
        """Seconds between two marks; only after `settle`."""

    def settle(self) -> None:
        """Wait until everything that was marked has happened."""


class WallClock:
    name = "perf_counter"

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, first: float, second: float) -> float:
        return second - first

    def settle(self) -> None:
        pass


class CudaClock:
    name = "cuda_events"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return float(first.elapsed_time(second)) / 1000

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else WallClock()


@dataclass(frozen=True, kw_only=True)
class CallTimes:
    """Seconds of each call from its start to each of its marks, and the same by wall clock."""

    clock: str
    seconds: dict[str, tuple[float, ...]]
    wall: tuple[float, ...]


Marker = Callable[[str], None]


def time_calls(call: Callable[[Marker], None], *, clock: Clock, stop: Stop) -> CallTimes:
    """Repeats `call`, which marks the ends of its own parts by name, until `stop` is reached.

    Calls follow each other without waiting; the clock is read once a batch of `stop.count`, after one synchronise.
    """
    seconds: dict[str, list[float]] = {}
    wall: list[float] = []
    while not (wall and stop.reached(wall)):
        pending = []
        clock.settle()
        began = time.perf_counter()
        for _ in range(stop.count):
            marks: dict[str, Any] = {}
            start = clock.mark()
            call(lambda name, marks=marks: marks.__setitem__(name, clock.mark()))  # type: ignore[misc]
            pending.append((start, marks))
        clock.settle()
        wall += [(time.perf_counter() - began) / stop.count] * stop.count
        for start, marks in pending:
            for name, mark in marks.items():
                seconds.setdefault(name, []).append(clock.between(start, mark))
    return CallTimes(
        clock=clock.name, seconds={name: tuple(found) for name, found in seconds.items()}, wall=tuple(wall)
    )
