"""Energy over a window much longer than the counter's period: of the whole board, or of all processors of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from varbench.measure import nvml, powercap
from varbench.measure.environment import gpu_identity
from varbench.record import Energy

BOARD_SECONDS = 10.0
"""NVML's counter moves about ten times a second."""

PROCESSOR_SECONDS = 1.0
"""That of the processors moves a thousand times a second."""


def energy(call: Callable[[], int], *, device: torch.device, window: float | None = None) -> Energy:
    """Joules an image while `call` (which returns how many images it made) repeats for `window` seconds.

    `NvmlError` or `PowercapError` where there is no counter. What else the board or the processors do is inside, and so is
    their idle share, as the source says.
    """
    return _of_board(call, device, window) if device.type == "cuda" else _of_processors(call, window)


def _of_board(call: Callable[[], int], device: torch.device, window: float | None) -> Energy:
    _, uuid, pci = gpu_identity(str(device))
    torch.cuda.synchronize(device)
    before = nvml.energy_joules(uuid=uuid, pci=pci)

    def settled() -> int:
        made = call()
        torch.cuda.synchronize(device)
        return made

    images, seconds = _repeated(settled, window or BOARD_SECONDS)
    joules = nvml.energy_joules(uuid=uuid, pci=pci) - before
    return Energy(joules_per_image=joules / images, window_seconds=seconds, source="NVML total energy, whole board")


def _of_processors(call: Callable[[], int], window: float | None) -> Energy:
    zones = powercap.packages()
    before = powercap.read(zones)
    images, seconds = _repeated(call, window or PROCESSOR_SECONDS)
    joules = powercap.joules(zones, before, powercap.read(zones))
    return Energy(
        joules_per_image=joules / images, window_seconds=seconds, source=f"powercap, {len(zones)} whole packages"
    )


def _repeated(call: Callable[[], int], window: float) -> tuple[int, float]:
    began, images = time.perf_counter(), 0
    while not images or time.perf_counter() - began < window:
        images += call()
    return images, time.perf_counter() - began
