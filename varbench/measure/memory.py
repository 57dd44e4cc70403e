"""What a row holds: weights, state over time, activations, and what torch, the driver and the system say of it."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from varbench.engine.pipeline import Pipeline
from varbench.engine.transforms import stored
from varbench.measure import nvml
from varbench.measure.environment import gpu_identity
from varbench.measure.largest import bisect
from varbench.measure.speed import Generation, balanced_labels
from varbench.plan.state import beside_state, state_over_time
from varbench.rows.grammar import FULL

Made = TypeVar("Made")

MOST_TRIED = 4096
"""A batch beyond which it is not worth the time to look for the end."""


def weight_bytes(pipe: Pipeline, row: str = FULL) -> int:
    """All that the row runs on, by storage, counted once: its models, replaced modules and all, and the tokenizer."""
    modules: tuple[nn.Module, ...] = (pipe.tokenizer, *pipe.backbones_of(row).values())
    return storage_bytes(tensor for module in modules for tensor in stored(module))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind tensors; views of one storage count once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def live_bytes(device: torch.device) -> int:
    """Bytes of every tensor that anything in this process can reach: what a policy hides is in here."""
    return storage_bytes(_live(device))


def _live(device: torch.device) -> Iterator[Tensor]:
    for found in gc.get_objects():
        # `type()` and not isinstance: the latter runs code of whatever object this is.
        if issubclass(type(found), Tensor) and found.device.type == device.type and found.layout == torch.strided:
            yield found


def measure(made: Generation, *, batch: int, seed: int) -> dict[str, Any]:
    """Peak figures of one generation in this fresh process, after a small one has set up what every row needs."""
    pipe = made.pipe
    made(balanced_labels(1, pipe.model.classes), seed=seed)
    with pipe.alone(made.row):
        output, found = peaks(lambda: made(balanced_labels(batch, pipe.model.classes), seed=seed), device=pipe.device)
    if "activations" in found:
        found["activations"] = max(0, found["activations"] - max(output.trace.state_peak))
    return {"batch": batch, "weights": weight_bytes(pipe, made.row), **found, "output": output}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One generation, looked at from outside."""

    after_steps: tuple[int, ...]
    """Bytes that live at the end of each step beyond those before the call."""
    planned: tuple[int, ...]
    """Bytes that the plan has then: state, and what the loop needs beside it."""
    left: int
    """Bytes that live once the call has ended and its result is gone."""
    tokens: NDArray[np.int64]


def seen_from_outside(made: Generation, *, batch: int, seed: int) -> Seen:
    device = made.pipe.device
    gc.collect()
    # Held, so that what a call puts in the place of what an earlier one hid is not taken for the same.
    before = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in _live(device))}
    seen: list[int] = []

    def observe(when: str, step: int) -> None:
        if when == "end":
            seen.append(
                storage_bytes(tensor for tensor in _live(device) if tensor.untyped_storage().data_ptr() not in before)
            )

    output = made(balanced_labels(batch, made.pipe.model.classes), seed=seed, observer=observe)
    tokens, plan = output.tokens.cpu().numpy().copy(), output.plan
    del output
    before.clear()
    gc.collect()
    left = live_bytes(device)
    dtype = str(made.pipe.dtype).removeprefix("torch.")
    states = state_over_time(plan, batch=batch, dtype=dtype)
    beside = beside_state(plan, batch=batch, dtype=dtype)
    planned = tuple(after + other for (_, after), other in zip(states, beside, strict=True))
    return Seen(after_steps=tuple(seen), planned=planned, left=left, tokens=tokens)


def largest_by_trying(made: Generation, *, seed: int) -> dict[str, Any]:
    """The largest batch that one generation of fits on the GPU, found by running it, within a twentieth."""
    device = made.pipe.device

    def fits(batch: int) -> bool:
        try:
            made(balanced_labels(batch, made.pipe.model.classes), seed=seed)
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    with made.pipe.alone(made.row):
        largest = bisect(fits, most=MOST_TRIED)
    limit = torch.cuda.get_device_properties(device).total_memory
    return {"batch": largest, "how": "bisection", "limit_bytes": limit}


def peaks(call: Callable[[], Made], *, device: torch.device) -> tuple[Made, dict[str, Any]]:
    """What a call makes, and the peaks while it does: `activations` is all that lay there beyond what did before it."""
    gc.collect()
    return _on_cuda(call, device) if device.type == "cuda" else _on_cpu(call)


def _on_cuda(call: Callable[[], Made], device: torch.device) -> tuple[Made, dict[str, Any]]:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    found: dict[str, Any] = {
        "torch_allocated": peak,
        "torch_reserved": torch.cuda.max_memory_reserved(device),
        "activations": max(0, peak - before),
        "missing": {},
    }
    _, uuid, pci = gpu_identity(str(device))
    try:
        found["nvml_process"], found["nvml_board"] = nvml.memory(uuid=uuid, pci=pci, pid=os.getpid())
        if found["nvml_process"] is None:
            found["missing"]["nvml_process_bytes"] = "NVML does not show this process; a container hides process ids"
    except nvml.NvmlError as error:
        found["missing"] |= dict.fromkeys(("nvml_process_bytes", "nvml_board_bytes"), str(error))
    return output, found


def _on_cpu(call: Callable[[], Made]) -> tuple[Made, dict[str, Any]]:
    _give_back()
    before = _resident("VmRSS")
    reset = _reset_peak()
    output = call()
    peak = _resident("VmHWM")
    if before is None or peak is None or not reset:
        why = "the system has no /proc/self/status and clear_refs"
        return output, {"missing": dict.fromkeys(("rss_growth_bytes", "activations_peak_bytes"), why)}
    growth = max(0, peak - before)
    return output, {"rss_growth": growth, "activations": growth, "missing": {}}


def _give_back() -> None:
    """Freed memory that the C library keeps would hide growth."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


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
