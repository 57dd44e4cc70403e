"""Measures a row that replaces the loop: the same figures, as far as they can be had from outside.

There are no steps to look into, so the transformer's own time, state over the steps and equality with a plan are absent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from varbench import rows
from varbench.engine.kernel import attention_kernel
from varbench.measure import honesty, memory, speed
from varbench.measure.clock import Clock, Marker, Stop, WallClock, clock_for, time_calls
from varbench.measure.environment import environment
from varbench.measure.speed import Regime, balanced_labels, check_images
from varbench.plan import presets
from varbench.policies import Generator
from varbench.quality.images import to_uint8
from varbench.record import Totals
from varbench.run import quality_task
from varbench.run.jobs import Job
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from varbench.run.channel import Channel


@dataclass(frozen=True)
class _Made:
    """A loaded generator and what it is asked for."""

    generator: Generator
    model: ModelSpec
    device: torch.device

    @torch.inference_mode()
    def __call__(self, labels: Sequence[int], *, seed: int, first: int = 0) -> Tensor:
        return self.generator.generate(labels, seed=seed, first_image=first)

    def labels(self, count: int, *, first: int = 0) -> list[int]:
        return balanced_labels(count, self.model.classes, first=first)


def run(job: Job, row: rows.Row, channel: Channel) -> None:
    """The job's task for its one row, whose generator is loaded first."""
    assert row.policies.generator is not None
    generator = row.policies.generator.policy
    made = _Made(generator, presets.preset(job.options.model).spec, torch.device(job.options.device))
    before = honesty.global_state()
    weights, loaded = 0, False
    with channel.row(row.name):
        held = memory.live_bytes(made.device)
        generator.load(device=job.options.device, dtype=job.options.dtype, seed=job.options.seed)
        weights, loaded = memory.live_bytes(made.device) - held, True
    count = generator.work(job.options.batch).parameters if loaded else None
    parameters = {} if count is None else {row.policies.generator.plugin: count}
    channel.say(
        "hello", environment=asdict(environment(job.options.device)), weights={}, parameters=parameters, disturbed=None
    )
    if not loaded:
        return
    with channel.row(row.name):
        if job.task == "speed":
            found = _time(job, made)
        elif job.task == "memory":
            found = {"weights": weights, **_remember(job, made)}
        else:
            found = _score(job, made, channel, row.name)
        channel.result(row.name, **found, changed=before.changed())


def _time(job: Job, made: _Made) -> dict[str, Any]:
    began = time.perf_counter()
    made(made.labels(job.options.batch), seed=job.options.seed).cpu()
    timed = speed.Timed(first_call=time.perf_counter() - began)
    seeds = iter(range(job.options.seed + 1_000_000 * (1 + job.round), 2**62))
    stop = Stop(count=job.options.count, seconds=job.options.seconds)
    regimes: list[tuple[Regime, int]] = [("throughput", job.options.batch), ("latency", 1)]
    for regime, batch in regimes:
        made(made.labels(batch), seed=next(seeds))
        if made.device.type == "cuda":
            in_stream = _call(made, batch, seeds.__next__, to_host=False)
            timed.add(regime, time_calls(in_stream, clock=clock_for(made.device), stop=stop))
        timed.add(regime, time_calls(_call(made, batch, seeds.__next__), clock=WallClock(), stop=stop))
    wall: Clock = WallClock()
    few = Stop(count=2, seconds=0.0)
    same = time_calls(_call(made, job.options.batch, lambda: job.options.seed), clock=wall, stop=few).wall
    fresh = time_calls(_call(made, job.options.batch, seeds.__next__), clock=wall, stop=few).wall
    timed.identical = min(same) / min(fresh)
    return timed.as_json()


def _call(made: _Made, batch: int, seed: Callable[[], int], *, to_host: bool = True) -> Callable[[Marker], None]:
    """Marks images on the device (on CUDA: in a pass of its own, by the stream's clock) and bytes on the host."""

    def call(mark: Marker) -> None:
        images = made(made.labels(batch), seed=seed())
        if not to_host or made.device.type != "cuda":
            mark("with_decoder")
        if to_host:
            to_uint8(images)
            mark("end_to_end")

    return call


def _remember(job: Job, made: _Made) -> dict[str, Any]:
    """Peak of one call, and whether an equal one gives the same images."""
    made(made.labels(1), seed=job.options.seed)
    images, found = memory.peaks(
        lambda: made(made.labels(job.options.batch), seed=job.options.seed), device=made.device
    )
    found["missing"] |= dict.fromkeys(("state_peak_bytes", "state_after_bytes"), "the row has no steps to look into")
    work = made.generator.work(job.options.batch)
    if work.cache_peak_bytes is None and found.pop("activations", None) is not None:
        found["missing"]["activations_peak_bytes"] = "the row does not say how much of the peak is state"
    elif "activations" in found:
        found["activations"] = max(0, found["activations"] - (work.cache_peak_bytes or 0))
    check_images(images, batch=job.options.batch, side=made.model.image_side)
    again = made(made.labels(job.options.batch), seed=job.options.seed)
    findings = [] if torch.equal(images, again) else ["the same call gave other images"]
    totals = Totals(
        flops=work.flops,
        steps=work.steps,
        layer_tokens=work.layer_tokens,
        state_peak_bytes=work.cache_peak_bytes,
        state_end_bytes=work.cache_end_bytes,
    )
    options = job.options
    kernel = attention_kernel(lambda: made(made.labels(options.batch), seed=options.seed))
    seen = {"kernel": kernel.name, "kernel_missing": kernel.missing}
    return {"batch": options.batch, **found, "trace": asdict(totals), **seen, "findings": findings}


def _score(job: Job, made: _Made, channel: Channel, row: str) -> dict[str, Any]:
    """All images, a batch at a time, and their scores where there is something to score them against."""
    side = made.model.image_side
    whole, labels = np.empty((job.options.images, 3, side, side), np.uint8), np.asarray(made.labels(job.options.images))
    for first in range(0, job.options.images, job.options.batch):
        count = min(job.options.batch, job.options.images - first)
        images = made(made.labels(count, first=first), seed=job.options.seed, first=first)
        check_images(images, batch=count, side=side)
        whole[first : first + count] = to_uint8(images)
        channel.alive(row=row, done=first + count, of=job.options.images)
    looks = quality_task.Looks(job, side=made.model.image_side)
    content: dict[str, Any] = {"samples": asdict(quality_task.samples(whole, labels, tokens=None))}
    return content | quality_task.scored(job, looks, whole, labels) if looks.scores else content
