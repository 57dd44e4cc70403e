"""What one call of a subject holds, looked at in the subject's own process: peaks of the allocator, and what stays."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.autograd.profiler import profile

from varbench.engine.storage import live_bytes, live_tensors, storage_bytes
from varbench.engine.subjects import Answer, Ask, Subject
from varbench.measure import nvml
from varbench.measure.calls import Outside, Peaks
from varbench.measure.environment import gpu_identity
from varbench.measure.largest import bisect
from varbench.measure.process_memory import private_bytes
from varbench.record import LargestBatch

Made = TypeVar("Made")

MOST_TRIED = 4096
"""A batch beyond which it is not worth the time to look for the end."""


def peaks(call: Callable[[], Made], *, weights: int, device: torch.device) -> tuple[Made, Peaks]:
    """What a call makes, and the peaks while it does: the same meaning on a CPU as on CUDA."""
    gc.collect()
    made, found = _on_cuda(call, device) if device.type == "cuda" else _on_cpu(call)
    return made, replace(found, weights=weights, allocated=(found.allocated or 0) + weights)


def _on_cuda(call: Callable[[], Made], device: torch.device) -> tuple[Made, Peaks]:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    made = call()
    torch.cuda.synchronize(device)
    process = board = None
    missing = {}
    _, uuid, pci = gpu_identity(str(device))
    try:
        process, board = nvml.memory(uuid=uuid, pci=pci, pid=os.getpid())
        if process is None:
            missing["nvml_process_bytes"] = "NVML does not show this process; a container hides process ids"
    except nvml.NvmlError as error:
        missing |= dict.fromkeys(("nvml_process_bytes", "nvml_board_bytes"), str(error))
    return made, Peaks(
        weights=0,
        allocated=torch.cuda.max_memory_allocated(device) - before,
        reserved=torch.cuda.max_memory_reserved(device),
        left=None,
        resident=None,
        nvml_process=process,
        nvml_board=board,
        missing=missing,
    )


def _on_cpu(call: Callable[[], Made]) -> tuple[Made, Peaks]:
    """Every allocation of torch's own allocator, as its profiler sees them: the same to the byte in every repeat.

    That of `torch.profiler` is the same one, and loads torch's compiler first, which takes longer than what is looked at.
    """
    before = _resident("VmRSS") if _reset_peak() else None
    with profile(use_kineto=True, profile_memory=True) as profiler:
        made = call()
    highest = _resident("VmHWM")
    held = peak = 0
    results: Any = profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    grown = None if before is None or highest is None else max(0, highest - before)
    missing = {} if grown is not None else {"rss_growth_bytes": "the system has no /proc/self/status and clear_refs"}
    return made, Peaks(
        weights=0, allocated=peak, reserved=None, left=held, resident=grown, nvml_process=None, nvml_board=None,
        missing=missing,
    )  # fmt: skip


def seen_from_outside(subject: Subject, ask: Ask) -> tuple[Answer, Outside]:
    """All tensors that live between the steps of a call, beyond those that lived before it."""
    device = subject.device
    gc.collect()
    # Held, so that what a call puts in the place of what an earlier one hid is not taken for the same.
    before = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in live_tensors(device))}
    seen: list[int] = []
    private: list[int | None] = []
    started = private_bytes() if device.type == "cpu" else None

    def observe(moment: str, step: int) -> None:
        if moment == "end":
            private.append(private_bytes())
            seen.append(
                storage_bytes(
                    tensor for tensor in live_tensors(device) if tensor.untyped_storage().data_ptr() not in before
                )
            )

    answer = subject.make(ask, observer=observe)
    answer = replace(
        answer, images=answer.images.clone(), tokens=None if answer.tokens is None else answer.tokens.clone()
    )
    before.clear()
    gc.collect()
    mine = storage_bytes(tensor for tensor in (answer.images, answer.tokens) if tensor is not None)
    grown = None if started is None else tuple((now or 0) - started for now in private)
    return answer, Outside(
        after_steps=tuple(seen),
        private=grown,
        left=live_bytes(device) - mine,
        taken=answer.trace.taken if answer.trace else (),
    )


def largest_by_trying(make: Callable[[int], object], *, device: torch.device) -> LargestBatch:
    """The largest batch that one call of fits on the GPU, found by running it, within a twentieth."""

    def fits(batch: int) -> bool:
        try:
            make(batch)
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    limit = torch.cuda.get_device_properties(device).total_memory
    return LargestBatch(batch=bisect(fits, most=MOST_TRIED), how="bisection", limit_bytes=limit)


def _resident(key: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
