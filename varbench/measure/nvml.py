"""The GPU as NVML sees it: who it is, how warm, how much it holds, what it has consumed. Nothing here needs torch.

Devices are matched by UUID or PCI address, never by index: CUDA_VISIBLE_DEVICES renumbers them for CUDA alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any


class NvmlError(Exception):
    """Why NVML gives no figure; its text goes into the record."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Stable facts and the present state of one board. A figure that the driver does not give is None."""

    uuid: str
    driver: str
    memory_bytes: float | None
    power_limit_watts: float | None
    clocks: dict[str, float]


@contextlib.contextmanager
def device(*, uuid: str | None, pci: str | None) -> Iterator[tuple[Any, Any]]:
    """The library and the handle of the board that CUDA uses; `NvmlError` says why there is none."""
    try:
        import pynvml
    except ImportError as error:
        raise NvmlError("nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlError(f"NVML cannot be used: {error}") from error
    try:
        yield pynvml, _handle(pynvml, uuid, pci)
    finally:
        pynvml.nvmlShutdown()


def _handle(pynvml: Any, uuid: str | None, pci: str | None) -> Any:
    tried = []
    if uuid:
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        tried.append(f"UUID {uuid}")
    if pci:
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByPciBusId(pci)
        tried.append(f"PCI address {pci}")
    raise NvmlError(f"NVML knows no board by {' or '.join(tried) or 'any name that torch gives'}")


def board(*, uuid: str | None, pci: str | None) -> Board:
    with device(uuid=uuid, pci=pci) as (pynvml, handle):
        clocks = {
            name: _value(pynvml, lambda kind=kind: pynvml.nvmlDeviceGetClockInfo(handle, kind))
            for name, kind in (("sm", pynvml.NVML_CLOCK_SM), ("memory", pynvml.NVML_CLOCK_MEM))
        }
        limit = _value(pynvml, lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        return Board(
            uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            memory_bytes=_value(pynvml, lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            power_limit_watts=None if limit is None else limit / 1000,
            clocks={name: value for name, value in clocks.items() if value is not None},
        )


def memory(*, uuid: str | None, pci: str | None, pid: int) -> tuple[int | None, int]:
    """Bytes that this process holds (None where a container hides processes), and the whole board."""
    with device(uuid=uuid, pci=pci) as (pynvml, handle):
        try:
            used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError as error:
            raise NvmlError(f"NVML gives no memory figure: {error}") from error
        own = [process.usedGpuMemory for process in processes if process.pid == pid]
        return (int(own[0]) if own and own[0] is not None else None), used


def foreign_processes(*, uuid: str | None, pci: str | None, own: Collection[int]) -> tuple[int, ...] | None:
    """As `others_on`, of a board by its name."""
    with device(uuid=uuid, pci=pci) as (pynvml, handle):
        return others_on(pynvml, handle, own=own)


def others_on(pynvml: Any, handle: Any, *, own: Collection[int]) -> tuple[int, ...] | None:
    """Processes on the board beside our own, which may disturb what is timed; asked while ours is on it. None where it is not
    among those that are listed: a container hides its process ids, or shows those of others alone."""
    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError as error:
        raise NvmlError(f"NVML lists no processes: {error}") from error
    listed = {process.pid for process in found}
    return tuple(sorted(listed.difference(own))) if listed.intersection(own) else None


def energy_joules(*, uuid: str | None, pci: str | None) -> float:
    """The board's energy counter since the driver was loaded."""
    with device(uuid=uuid, pci=pci) as (pynvml, handle):
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except pynvml.NVMLError as error:
            raise NvmlError(f"the board has no energy counter: {error}") from error


def _value(pynvml: Any, ask: Any) -> float | None:
    try:
        return float(ask())
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
