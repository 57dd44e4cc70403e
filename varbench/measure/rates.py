"""What this machine reaches: matrix products by type, memory, and the least that an operator takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from statistics import median

import torch

from varbench.measure.environment import environment
from varbench.measure.kept_rates import name_of
from varbench.model.weighted import product
from varbench.plan.hardware import Hardware

ROWS, WIDTH = {"cpu": 2048, "cuda": 32768}, {"cpu": 1024, "cuda": 1920}
"""Of the products that are timed: the second linear layer of an FFN at a late scale, of d16 and of d30."""
SECONDS = 3.0
"""A rate is the median of repetitions that take about this long."""
MOVED = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Bytes of a tensor that no cache holds."""


def calibrate(device: str, *, say: Callable[[str], None] = lambda text: None, seconds: float = SECONDS) -> Hardware:
    """Measures a device in less than a minute."""
    place = torch.device(device)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        say(f"products in {name}")
        rates[name] = round(_rate(place, dtype, seconds) / 1e12, 4)
    say("memory")
    bandwidth = _bandwidth(place, seconds)
    say("operators")
    found = environment(device)
    return Hardware(
        name=name_of(found.device, found.cores),
        tflops=rates,
        bandwidth_gbs=round(bandwidth / 1e9, 2),
        memory_gb=round(_memory(place, found.memory_bytes) / 2**30, 1),
        device=place.type,
        operator_us=round(_operator(place, seconds / 3) * 1e6, 2),
        measured=True,
        source=f"measured by varbench env --calibrate on {date.today().isoformat()}, torch {torch.__version__}",
    )


def _rate(place: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the product that the engine would use."""
    rows, width = ROWS[place.type], WIDTH[place.type]
    with torch.inference_mode():
        x = torch.randn(rows, 4 * width, device=place, dtype=dtype)
        weight = torch.randn(width, 4 * width, device=place, dtype=dtype)
        return 2 * rows * width * 4 * width / _median(lambda: product(x, weight, None), place, seconds)


def _bandwidth(place: torch.device, seconds: float) -> float:
    """Bytes a second of a sum of two tensors into a third."""
    one = torch.ones(MOVED[place.type] // 4, device=place)
    other, out = torch.ones_like(one), torch.empty_like(one)
    return 3 * one.nbytes / _median(lambda: torch.add(one, other, out=out), place, seconds)


def _operator(place: torch.device, seconds: float) -> float:
    """Seconds from one small operator to the next, of many in a row."""
    many = 1000
    x = torch.zeros(4096, device=place)
    work = _captured(x, many) if place.type == "cuda" else lambda: [x.add_(1) for _ in range(many)]
    return _median(work, place, seconds) / many


def _captured(x: torch.Tensor, many: int) -> Callable[[], object]:
    """As the engine launches operators on a GPU."""
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(many):
            x.add_(1)
    return graph.replay


def _median(work: Callable[[], object], place: torch.device, seconds: float) -> float:
    times: list[float] = []
    work()
    until = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < until:
        _wait(place)
        began = time.perf_counter()
        work()
        _wait(place)
        times.append(time.perf_counter() - began)
    return median(times)


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _memory(place: torch.device, host: int | None) -> int:
    return torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else host or 0
