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

from varbench import presets, rows
from varbench.measure import honesty, memory, speed
from varbench.measure.clock import Clock, Marker, Stop, WallClock, clock_for, time_calls
from varbench.measure.environment import environment
from varbench.measure.speed import Regime, balanced_labels, check_images
from varbench.policies import Generator
from varbench.quality.images import to_uint8
from varbench.records import Totals
from varbench.runner import quality_task
from varbench.runner.jobs import Job
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from varbench.runner.child import Channel


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
    channel.say("hello", environment=asdict(environment(job.device)), weights={}, parameters={}, disturbed=None)
    made = _Made(generator, presets.preset(job.model).spec, torch.device(job.device))
    before = honesty.global_state()
    with channel.row(row.name):
        held = memory.live_bytes(made.device)
        generator.load(device=job.device, dtype=job.dtype, seed=job.seed)
        weights = memory.live_bytes(made.device) - held
        if job.task == "speed":
            found = _time(job, made)
        elif job.task == "memory":
            found = {"weights": weights, **_remember(job, made)}
        else:
            found = _score(job, made, channel, row.name)
        channel.result(row.name, **found, changed=before.changed())


def _time(job: Job, made: _Made) -> dict[str, Any]:
    began = time.perf_counter()
    made(made.labels(job.batch), seed=job.seed).cpu()
    timed = speed.Timed(first_call=time.perf_counter() - began)
    seeds = iter(range(job.seed + 1_000_000 * (1 + job.round), 2**62))
    stop = Stop(count=job.count, seconds=job.seconds)
    regimes: list[tuple[Regime, int]] = [("throughput", job.batch), ("latency", 1)]
    for regime, batch in regimes:
        made(made.labels(batch), seed=next(seeds))
        if made.device.type == "cuda":
            in_stream = _call(made, batch, seeds.__next__, to_host=False)
            timed.add(regime, time_calls(in_stream, clock=clock_for(made.device), stop=stop))
        timed.add(regime, time_calls(_call(made, batch, seeds.__next__), clock=WallClock(), stop=stop))
    wall: Clock = WallClock()
    few = Stop(count=2, seconds=0.0)
    same = time_calls(_call(made, job.batch, lambda: job.seed), clock=wall, stop=few).wall
    fresh = time_calls(_call(made, job.batch, seeds.__next__), clock=wall, stop=few).wall
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
    made(made.labels(1), seed=job.seed)
    missing = dict.fromkeys(("state_peak_bytes", "state_after_bytes"), "the row has no steps to look into")
    found: dict[str, Any] = {}
    if made.device.type == "cuda":
        torch.cuda.synchronize(made.device)
        torch.cuda.reset_peak_memory_stats(made.device)
        before = torch.cuda.memory_allocated(made.device)
    images = made(made.labels(job.batch), seed=job.seed)
    if made.device.type == "cuda":
        torch.cuda.synchronize(made.device)
        found["torch_allocated"] = torch.cuda.max_memory_allocated(made.device)
        found["torch_reserved"] = torch.cuda.max_memory_reserved(made.device)
        found["activations"] = found["torch_allocated"] - before
    else:
        missing |= dict.fromkeys(("rss_growth_bytes", "activations_peak_bytes"), "not measured for rows that replace the loop")
    check_images(images, batch=job.batch, side=made.model.image_side)
    again = made(made.labels(job.batch), seed=job.seed)
    findings = [] if torch.equal(images, again) else ["the same call gave other images"]
    work = made.generator.work(job.batch)
    totals = Totals(
        flops=work.flops,
        steps=work.steps,
        layer_tokens=work.layer_tokens,
        state_peak_bytes=work.cache_peak_bytes,
        state_end_bytes=work.cache_end_bytes,
    )
    return {"batch": job.batch, **found, "missing": missing, "trace": asdict(totals), "kernel": None, "findings": findings}


def _score(job: Job, made: _Made, channel: Channel, row: str) -> dict[str, Any]:
    """All images, a batch at a time, and their scores where there is something to score them against."""
    parts = []
    for first in range(0, job.images, job.batch):
        count = min(job.batch, job.images - first)
        images = made(made.labels(count, first=first), seed=job.seed, first=first)
        check_images(images, batch=count, side=made.model.image_side)
        parts.append(to_uint8(images))
        channel.alive(row=row, done=first + count, of=job.images)
    whole, labels = np.concatenate(parts), np.asarray(made.labels(job.images))
    looks = quality_task.Looks(job, side=made.model.image_side)
    content: dict[str, Any] = {"samples": asdict(quality_task.samples(whole, labels, tokens=None))}
    return content | quality_task.scored(job, looks, whole, labels) if looks.scores else content
