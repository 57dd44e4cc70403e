"""Energy of the whole board over a window much longer than the counter's period of about a tenth of a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from varbench.measure import nvml
from varbench.measure.environment import gpu_identity
from varbench.record import Energy

WINDOW_SECONDS = 10.0


def board_energy(call: Callable[[], int], *, device: torch.device, window: float = WINDOW_SECONDS) -> Energy:
    """Joules an image while `call` (which returns how many images it made) repeats for `window` seconds.

    `nvml.NvmlError` where there is no counter. The board's idle share is inside, as the source says.
    """
    if device.type != "cuda":
        raise nvml.NvmlError("no energy counter on a CPU")
    _, uuid, pci = gpu_identity(str(device))
    torch.cuda.synchronize(device)
    before, began, images = nvml.energy_joules(uuid=uuid, pci=pci), time.perf_counter(), 0
    while time.perf_counter() - began < window:
        images += call()
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    joules = nvml.energy_joules(uuid=uuid, pci=pci) - before
    return Energy(joules_per_image=joules / images, window_seconds=seconds, source="NVML total energy, whole board")
