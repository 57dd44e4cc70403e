"""What this machine reaches: matrix products by type, memory, and what an operator takes; and on a CPU, where sizes decide more than
on a GPU, the share of both that the engine reaches with `tiny`, whatever the method."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from statistics import median

import torch

from varbench.engine.loading import load_pipeline
from varbench.measure.environment import environment
from varbench.measure.kept_rates import name_of
from varbench.model.weighted import product
from varbench.plan.cost import predict, work
from varbench.plan.hardware import Hardware
from varbench.plan.presets import DEFAULT
from varbench.rows import FULL

ROWS, WIDTH = {"cpu": 2048, "cuda": 32768}, {"cpu": 1024, "cuda": 1920}
"""Of the products that are timed: the second linear layer of an FFN at a late scale, of d16 and of d30."""
SECONDS = 3.0
"""A rate is the median of repetitions that take about this long."""
MOVED = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Bytes of a tensor that no cache holds."""
BATCHES = 1, 32
"""Images of a generation: what one takes is mostly its operators, and what so many take mostly their products and passes."""


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
    made = Hardware(
        name=name_of(found.device, found.cores),
        tflops=rates,
        bandwidth_gbs=round(bandwidth / 1e9, 2),
        memory_gb=round(_memory(place, found.memory_bytes) / 2**30, 1),
        device=place.type,
        operator_us=round(_operator(place, seconds / 3) * 1e6, 2),
        measured=True,
        source=f"measured by varbench env --calibrate on {date.today().isoformat()}, torch {torch.__version__}",
    )
    if place.type != "cpu":
        return made
    reached = {}
    for name in ("float32", "bfloat16"):
        say(f"generations in {name}")
        reached[name] = _reached(made, name, seconds)
    return replace(
        made,
        efficiency={name: round(one.share, 3) for name, one in reached.items()},
        operator_us=round(median(one.operator for one in reached.values()) * 1e6, 2),
    )


@dataclass(frozen=True, kw_only=True)
class Reached:
    """By the engine."""

    share: float
    """Of the roofline."""
    operator: float
    """Seconds of one, the host's part with it."""


def _reached(device: Hardware, dtype: str, seconds: float) -> Reached:
    """From generations of two batches by turns: the same operators, and other work."""
    pipe = load_pipeline(DEFAULT, dtype=dtype, random=True)
    plan = pipe.compile(FULL)[0]
    times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for batch in BATCHES:
        pipe.generate([0] * batch)
    until = time.perf_counter() + seconds
    while len(times[BATCHES[0]]) < 5 or time.perf_counter() < until:
        for batch in BATCHES:
            began = time.perf_counter()
            pipe.generate([0] * batch, seed=len(times[batch]))
            times[batch].append(time.perf_counter() - began)
    counted = [work(plan, batch=batch, dtype=dtype, device="cpu") for batch in BATCHES]
    return solved(
        device,
        few=median(times[BATCHES[0]]),
        many=median(times[BATCHES[1]]),
        bound_few=predict(counted[0], replace(device, operator_us=0.0)).total,
        bound_many=predict(counted[1], replace(device, operator_us=0.0)).total,
        operators=sum(step.operators for step in counted[0].steps),
    )


def solved(
    device: Hardware, *, few: float, many: float, bound_few: float, bound_many: float, operators: int
) -> Reached:
    """What makes both come out; no more than the roofline, and no operator faster than the smallest."""
    share = min(1.0, (bound_many - bound_few) / max(many - few, 1e-9))
    return Reached(share=share, operator=max(device.operator_us * 1e-6, (few - bound_few / share) / operators))


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
