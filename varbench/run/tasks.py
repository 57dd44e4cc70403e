"""The tasks that a child can do. Each says what it finds, row by row, as soon as it is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench import rows
from varbench.base.hashing import file_hash
from varbench.engine.kernel import attention_kernel
from varbench.engine.pipeline import Output, Pipeline, load_pipeline
from varbench.measure import honesty, memory, nvml, speed
from varbench.measure.clock import Stop
from varbench.measure.energy import board_energy
from varbench.measure.environment import environment, gpu_identity
from varbench.measure.speed import Generation
from varbench.plan import presets
from varbench.record import trace_totals
from varbench.run import generator_task, inputs_task, quality_task
from varbench.run.jobs import Job
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from varbench.run.channel import Channel


def run(job: Job, channel: Channel) -> None:
    if job.task == "inputs":
        inputs_task.look(job, channel)
        return
    if job.task == "train":
        train(job, channel)
        return
    row = rows.resolve(job.rows[0], presets.preset(job.options.model).spec)
    if row.policies.generator is not None:
        generator_task.run(job, row, channel)
        return
    pipe = load(job)
    channel.say(
        "hello",
        environment=asdict(environment(job.options.device)),
        weights=pipe.weights,
        parameters={name: sum(p.numel() for p in model.parameters()) for name, model in pipe.backbones.items()},
        disturbed=_disturbed(job),
    )
    {"speed": time_rows, "memory": measure_memory, "quality": quality_task.make_and_score}[job.task](job, pipe, channel)


def load(job: Job) -> Pipeline:
    further: dict[str, ModelSpec] = {}
    for row in job.rows:
        further |= rows.resolve(row, presets.preset(job.options.model).spec).policies.backbones
    if job.files is None:
        pipe = load_pipeline(
            job.options.model, device=job.options.device, dtype=job.options.dtype, random=True, seed=job.options.seed
        )
        pipe.load_further(further)
    else:
        files = job.files
        pipe = load_pipeline(
            job.options.model,
            vae=files["vae"],
            var=files["main"],
            companions={name: files[name] for name in further if name in files},
            device=job.options.device,
            dtype=job.options.dtype,
        )
    if job.options.compile != "off":
        pipe.compile_layers(mode=job.options.compile)
    return pipe


def generation(job: Job, pipe: Pipeline, row: str) -> Generation:
    return Generation(pipe=pipe, row=row, cfg=job.options.cfg, top_k=job.options.top_k, top_p=job.options.top_p)


def time_rows(job: Job, pipe: Pipeline, channel: Channel) -> None:
    """All rows warm up; then they take turns, in reversed order every other time; then each has its single passes.

    The full model's plan takes turns with them on the same weights: what drifts between processes cannot come between a
    row and what it is divided by.
    """
    timed: dict[str, speed.Timed] = {}
    ran: dict[str, dict[str, Any]] = {}
    changed: dict[str, list[str]] = {}
    full, anchor = generation(job, pipe, job.full), speed.Timed()
    if job.anchor:
        speed.warm(full, batch=job.options.batch, seed=job.options.seed, timed=anchor)
    for row in job.rows:
        with channel.row(row), _watched(row, changed):
            fresh = speed.Timed()
            output = speed.warm(generation(job, pipe, row), batch=job.options.batch, seed=job.options.seed, timed=fresh)
            ran[row] = _what_ran(job, output)
            timed[row] = fresh
    stop = Stop(count=-(-job.options.count // speed.CYCLES), seconds=job.options.seconds / speed.CYCLES)
    for cycle in range(speed.CYCLES):
        seed = job.options.seed + 1_000_000 * (1 + cycle + 10 * job.round)
        if job.anchor:
            speed.time_row(full, "throughput", batch=job.options.batch, stop=stop, seed=seed, timed=anchor)
        for row in list(timed) if cycle % 2 == 0 else list(timed)[::-1]:
            went = False
            with channel.row(row), _watched(row, changed):
                made = generation(job, pipe, row)
                speed.time_row(made, "throughput", batch=job.options.batch, stop=stop, seed=seed, timed=timed[row])
                if job.options.batch > 1:
                    speed.time_row(made, "latency", batch=1, stop=stop, seed=seed, timed=timed[row])
                went = True
            if not went:
                del timed[row]
    beside = {"anchor": anchor.columns["throughput"]["transformer"]} if job.anchor else {}
    for row, found in timed.items():
        with channel.row(row), _watched(row, changed):
            made = generation(job, pipe, row)
            extra: dict[str, Any] = {**beside}
            if job.per_scale:
                extra["per_scale"] = speed.per_scale(made, batch=job.options.batch, count=3, seed=job.options.seed)
                found.identical = speed.time_identical(
                    made, batch=job.options.batch, count=2, seed=job.options.seed + 7
                )
                extra["switch"] = speed.time_switch(made)
            if job.energy:
                extra["energy"] = _energy(job, made)
            channel.result(row, **found.as_json(), **ran[row], **extra, changed=changed.get(row, []))


def measure_memory(job: Job, pipe: Pipeline, channel: Channel) -> None:
    """A child for each row: peaks first, while the process is fresh, then what an outside look finds on a small batch."""
    if len(job.rows) != 1:
        raise ValueError(f"a memory child takes one row, and was given {len(job.rows)}")
    (row,) = job.rows
    changed: dict[str, list[str]] = {}
    with channel.row(row):
        with _watched(row, changed):
            made = generation(job, pipe, row)
            found = memory.measure(made, batch=job.options.batch, seed=job.options.seed)
            output = found.pop("output")
            speed.check_images(output.images, batch=job.options.batch, side=pipe.model.image_side)
            ran = _what_ran(job, output)
            findings: list[str] = ran.pop("findings")
            del output
            if pipe.device.type == "cuda":
                found["largest"] = memory.largest_by_trying(made, seed=job.options.seed)
            findings += honesty.from_outside(made, batch=min(job.options.batch, 8), seed=job.options.seed)
            labels = speed.balanced_labels(job.options.batch, pipe.model.classes)
            kernel = attention_kernel(lambda: made(labels, seed=job.options.seed))
        channel.result(
            row,
            **found,
            **ran,
            kernel=kernel.name,
            kernel_missing=kernel.missing,
            findings=findings,
            changed=changed.get(row, []),
        )


def _what_ran(job: Job, output: Output) -> dict[str, Any]:
    """The trace in the words of a record, and where it is not what was planned."""
    trace, plan = output.trace, output.plan
    return {
        "state_after": trace.state_after,
        "state_peak": trace.state_peak,
        "trace": asdict(trace_totals(trace, plan, batch=job.options.batch)),
        "findings": honesty.against_plan(plan, trace, batch=job.options.batch, dtype=job.options.dtype),
    }


def train(job: Job, channel: Channel) -> None:
    """The recipe of the job's row, from the cache or trained now."""
    from varbench.data.folder import open_folder
    from varbench.data.shapes import Shapes
    from varbench.train.budgets import QUICK_RECIPE, RECIPE
    from varbench.train.recipes import recipe_weights

    assert job.files is not None
    spec = presets.preset(job.options.model).spec
    row = rows.resolve(job.rows[0], spec)
    files = {name: Path(path) for name, path in job.files.items()}
    budget = replace(QUICK_RECIPE if job.options.quick else RECIPE, seed=job.options.seed)
    if job.options.steps is not None:
        budget = replace(budget, steps=job.options.steps)
    data = open_folder(job.options.data, side=spec.image_side) if job.options.data else Shapes(side=spec.image_side)
    with channel.row(row.name):
        done = recipe_weights(
            row,
            vae=files.pop("vae"),
            pretrained=files,
            data=data,
            budget=budget,
            device=job.options.device,
        )
        channel.result(
            row.name,
            files={name: str(path) for name, path in done.files.items()},
            hashes={name: file_hash(path) for name, path in done.files.items()},
            record=done.record,
            cached=done.cached,
        )


@contextlib.contextmanager
def _watched(row: str, changed: dict[str, list[str]]) -> Iterator[None]:
    """Notes what the row changes of the process's global state, and puts it back."""
    before = honesty.global_state()
    try:
        yield
    finally:
        if names := before.changed():
            before.restore()
            changed[row] = sorted({*changed.get(row, []), *names})


def _energy(job: Job, made: Generation) -> dict[str, Any]:
    labels = speed.balanced_labels(job.options.batch, made.pipe.model.classes)

    def call() -> int:
        made(labels, seed=job.options.seed)
        return job.options.batch

    try:
        energy = board_energy(call, device=made.pipe.device)
    except nvml.NvmlError as error:
        return {"missing": str(error)}
    return {"figure": asdict(energy)}


def _disturbed(job: Job) -> list[int] | None:
    """Other processes on the GPU; None where that cannot be seen."""
    if not job.options.device.startswith("cuda"):
        return None
    _, uuid, pci = gpu_identity(job.options.device)
    try:
        return list(nvml.foreign_processes(uuid=uuid, pci=pci, pid=os.getpid()))
    except nvml.NvmlError:
        return None
