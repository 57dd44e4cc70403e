"""How long a row takes: three columns out of one call, two batch sizes, rows taken in turn, and each step on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from varbench.engine.pipeline import Output, Pipeline
from varbench.errors import WrongOutputError
from varbench.measure.clock import CallTimes, Clock, Marker, Stop, WallClock, clock_for, time_calls

Regime = Literal["latency", "throughput"]
CYCLES = 3
"""Turns that rows take within a child; what drifts within it then falls on all of them."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One row's way to make a batch."""

    pipe: Pipeline
    row: str
    cfg: float
    top_k: int
    top_p: float

    def __call__(
        self, labels: Sequence[int], *, seed: int, first: int = 0, observer: Callable[[str, int], None] | None = None
    ) -> Output:
        return self.pipe.generate(
            labels, seed=seed, cfg=self.cfg, top_k=self.top_k, top_p=self.top_p, method=self.row, first_image=first,
            observer=observer,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        return len(self.pipe.compile(self.row)[0].steps)


def balanced_labels(count: int, classes: int, *, first: int = 0) -> list[int]:
    """Every class as often as any other, to within one."""
    return [place % classes for place in range(first, first + count)]


@dataclass
class _Fresh:
    """Seeds that no call has had before, so that nothing can be remembered."""

    next: int

    def __call__(self) -> int:
        self.next += 1
        return self.next


@dataclass
class Timed:
    """Raw samples of one row in one child."""

    columns: dict[Regime, dict[str, list[float]]] = field(default_factory=dict)
    wall: dict[Regime, list[float]] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)
    first_call: float | None = None
    second_call: float | None = None
    """Of the same shapes: what the first took beyond it was set-up or compilation."""
    identical: float | None = None
    """Median seconds of a call that repeats an earlier one exactly, as a share of a fresh call's."""

    def add(self, regime: Regime, samples: CallTimes) -> None:
        for name, seconds in samples.seconds.items():
            self.columns.setdefault(regime, {}).setdefault(name, []).extend(seconds)
            self.clocks[name] = samples.clock
        if samples.clock != WallClock.name:
            self.wall.setdefault(regime, []).extend(samples.wall)

    def as_json(self) -> dict[str, Any]:
        return {
            "columns": self.columns,
            "wall": self.wall,
            "clocks": self.clocks,
            "first_call": self.first_call,
            "second_call": self.second_call,
            "identical": self.identical,
        }


def warm(made: Generation, *, batch: int, seed: int, timed: Timed) -> Output:
    """The very shapes that are timed, both regimes; the first call of all is a figure of its own."""
    classes = made.pipe.model.classes
    began = time.perf_counter()
    output = made(balanced_labels(batch, classes), seed=seed)
    _wait(made.pipe.device)
    timed.first_call = time.perf_counter() - began
    made(balanced_labels(1, classes), seed=seed)
    _wait(made.pipe.device)
    began = time.perf_counter()
    made(balanced_labels(batch, classes), seed=seed)
    _wait(made.pipe.device)
    timed.second_call = time.perf_counter() - began
    check_images(output.images, batch=batch, side=made.pipe.model.image_side)
    return output


def check_images(images: Tensor, *, batch: int, side: int) -> None:
    """`WrongOutputError` for too few images, another size, or NaN, with both numbers."""
    if type(images) is not Tensor:  # which could put work off until nobody looks at a clock
        raise WrongOutputError(f"images are a {type(images).__name__}, and a plain torch.Tensor was asked for")
    shape, wanted = tuple(images.shape), (batch, 3, side, side)
    if shape[:1] != wanted[:1]:
        raise WrongOutputError(f"{batch} images were asked for, and {shape[0] if shape else 0} came")
    if shape != wanted:
        raise WrongOutputError(f"images have shape {shape}, and {wanted} was asked for")
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise WrongOutputError(f"{broken} of {batch} images hold NaN or infinite pixels")


def time_row(made: Generation, regime: Regime, *, batch: int, stop: Stop, seed: int, timed: Timed) -> None:
    """One turn of one row: samples of every column are added to `timed`."""
    labels = balanced_labels(batch, made.pipe.model.classes)
    device, fresh = made.pipe.device, _Fresh(seed)
    if device.type == "cuda":
        timed.add(regime, time_calls(_in_stream(made, labels, fresh), clock=clock_for(device), stop=stop))
        timed.add(regime, time_calls(_to_host(made, labels, fresh), clock=WallClock(), stop=stop))
    else:
        timed.add(regime, time_calls(_on_cpu(made, labels, fresh), clock=WallClock(), stop=stop))


def time_identical(made: Generation, *, batch: int, count: int, seed: int) -> float:
    """Median seconds of identical calls over that of fresh ones: far below 1 means that something was remembered."""
    labels = balanced_labels(batch, made.pipe.model.classes)
    stop, fresh = Stop(count=count, seconds=0.0), _Fresh(seed)
    new = time_calls(_to_host(made, labels, fresh), clock=WallClock(), stop=stop).wall
    same = time_calls(_to_host(made, labels, lambda: seed), clock=WallClock(), stop=stop).wall
    return sorted(same)[len(same) // 2] / sorted(new)[len(new) // 2]


def time_switch(made: Generation) -> float:
    """Seconds that going over to this row costs on weights that are loaded: its plan is looked up, nothing is reloaded."""
    began = time.perf_counter()
    made.pipe.compile(made.row)
    return time.perf_counter() - began


def per_scale(made: Generation, *, batch: int, count: int, seed: int) -> dict[str, Any]:
    """Median seconds of each plan step, in a pass of its own."""
    clock: Clock = clock_for(made.pipe.device)
    labels, fresh = balanced_labels(batch, made.pipe.model.classes), _Fresh(seed)
    passes: list[list[tuple[Any, Any]]] = []
    for _ in range(count):
        starts: dict[int, Any] = {}
        spans: list[tuple[Any, Any]] = []

        def observe(when: str, step: int, starts: dict[int, Any] = starts, spans: list[Any] = spans) -> None:
            if when == "start":
                starts[step] = clock.mark()
            else:
                spans.append((starts[step], clock.mark()))

        made(labels, seed=fresh(), observer=observe)
        passes.append(spans)
    clock.settle()
    seconds = [[clock.between(*span) for span in spans] for spans in passes]
    middle = [sorted(found)[len(found) // 2] for found in zip(*seconds, strict=True)]
    return {"batch": batch, "clock": clock.name, "seconds": middle}


def _on_cpu(made: Generation, labels: list[int], fresh: Callable[[], int]) -> Callable[[Marker], None]:
    """On a CPU nothing runs ahead, so one call gives all three columns."""

    def call(mark: Marker) -> None:
        output = made(labels, seed=fresh(), observer=_at_last_step(made.steps, mark))
        mark("with_decoder")
        _bytes_on_host(output)
        mark("end_to_end")

    return call


def _in_stream(made: Generation, labels: list[int], fresh: Callable[[], int]) -> Callable[[Marker], None]:
    def call(mark: Marker) -> None:
        made(labels, seed=fresh(), observer=_at_last_step(made.steps, mark))
        mark("with_decoder")

    return call


def _to_host(made: Generation, labels: list[int], fresh: Callable[[], int]) -> Callable[[Marker], None]:
    """From labels to bytes on the host, by wall clock: what a user waits for."""

    def call(mark: Marker) -> None:
        _bytes_on_host(made(labels, seed=fresh()))
        mark("end_to_end")

    return call


def _bytes_on_host(output: Output) -> None:
    from varbench.quality.images import to_uint8

    to_uint8(output.images)


def _at_last_step(steps: int, mark: Marker) -> Callable[[str, int], None]:
    def observe(when: str, step: int) -> None:
        if when == "end" and step == steps - 1:
            mark("transformer")

    return observe


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
