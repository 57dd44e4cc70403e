"""Clocks: on CUDA events in the stream, read after one synchronise; on a CPU the system's performance counter."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


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
