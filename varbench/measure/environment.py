"""Who measured: stable facts of machine and software, so that two runs on one machine carry one `machine`."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from varbench.base.hashing import digest
from varbench.measure import nvml
from varbench.record import Environment

VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE", "MALLOC_ARENA_MAX", "LD_PRELOAD",
    "OMP_WAIT_POLICY", "GLIBC_TUNABLES",
)  # fmt: skip
LIBRARIES = ("varbench", "torch", "torchvision", "numpy", "scipy", "torch-fidelity", "clean-fid", "torchao")


def environment(device: str, *, threads: int | None = None) -> Environment:
    """The facts as they are now. On CUDA this asks torch for the board, so only a child calls it with a GPU.

    `threads` are torch's, which only a process that computes can tell.
    """
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "device": "cpu",
    }
    gpu: dict[str, Any] = {}
    if device.startswith("cuda"):
        gpu = gpu_facts(device)
        facts["device"] = gpu.pop("device")
    named = "|".join(str(facts[key]) for key in ("system", "cpu", "cores", "memory_bytes", "device"))
    machine = digest([f"{named}|{gpu.get('gpu_uuid')}"])[:12]
    return Environment(
        machine=machine, **facts, **gpu, versions=versions(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        threads=threads, affinity=affinity(), load=_load(), governor=_governor(),
    )  # fmt: skip


def gpu_facts(device: str) -> dict[str, Any]:
    """The board that torch uses under this name. Without NVML, what torch knows."""
    name, uuid, pci = gpu_identity(device)
    try:
        board = nvml.board(uuid=uuid, pci=pci)
    except nvml.NvmlError:
        return {"device": name, "gpu_uuid": uuid}
    return {
        "device": name,
        "gpu_uuid": board.uuid,
        "device_memory_bytes": None if board.memory_bytes is None else int(board.memory_bytes),
        "driver": board.driver,
        "clocks": board.clocks,
        "power_limit_watts": board.power_limit_watts,
    }


def gpu_identity(device: str) -> tuple[str, str | None, str | None]:
    """Name, UUID and PCI address by torch; this initialises CUDA."""
    import torch

    found = torch.cuda.get_device_properties(torch.device(device))
    uuid = getattr(found, "uuid", None)
    domain, bus, slot = (getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
    known = domain is not None and bus is not None and slot is not None
    pci = f"{domain:08x}:{bus:02x}:{slot:02x}.0" if known else None
    return found.name, None if uuid is None else f"GPU-{uuid}", pci


def relatives() -> set[int]:
    """Process ids of the run that this process is a child of: those of all that its nurseries have made, and its own."""
    import psutil

    above = psutil.Process().parents()[:2]
    return (
        {process.pid for process in (*above[-1].children(recursive=True), *above)} | {os.getpid()}
        if above
        else {os.getpid()}
    )


def descendants() -> set[int]:
    """Process ids of this process and of all that it has started, and that these have."""
    import psutil

    own = psutil.Process()
    return {own.pid, *(process.pid for process in own.children(recursive=True))}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def available_memory() -> int | None:
    """Bytes that can be used now without swapping: of the machine, or of the container where that is less."""
    try:
        import psutil
    except ImportError:
        return None
    free = int(psutil.virtual_memory().available)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _cgroup(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _memory() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    total = int(psutil.virtual_memory().total)
    limit = _cgroup("memory.max")
    return total if limit is None else min(total, limit)


def cores() -> int:
    """Processors that this process may run on."""
    return len(affinity() or ()) or os.cpu_count() or 1


def affinity() -> tuple[int, ...] | None:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _governor() -> str | None:
    found = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return ", ".join(sorted(found)) or None


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
