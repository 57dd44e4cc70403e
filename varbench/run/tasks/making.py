"""A subject's process: loads the model and makes images when asked. No code that judges them runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.base.hashing import array_hash, file_hash
from varbench.engine.kernel import attention_kernel
from varbench.engine.loading import load_pipeline
from varbench.engine.pipeline import Pipeline
from varbench.engine.pixels import to_uint8
from varbench.engine.subjects import (
    Answer,
    Ask,
    EngineSubject,
    GeneratorSubject,
    Neighbours,
    Subject,
    load_generator,
)
from varbench.measure import memory, nvml, powercap, process_state, timed_call
from varbench.measure.calls import Chunk, CountedFlops, Reply, Request
from varbench.measure.energy import energy
from varbench.measure.environment import environment, gpu_identity, relatives
from varbench.measure.made_storages import held_through_a_step
from varbench.measure.threads import threads
from varbench.policies import TaughtGenerator, TrainedGenerator, Work
from varbench.quality.images import Images, write_made
from varbench.record import Status, Totals
from varbench.rows.grammar import Row
from varbench.run.channel import Channel
from varbench.run.messages import Failed, Job, Ready
from varbench.run.reasons import of_exception
from varbench.run.tasks.resolving import code_of
from varbench.train.generators import PART


def run(job: Job, channel: Channel) -> None:
    before = process_state.global_state()
    subject, loaded = load(job)
    before.restore()
    channel.send(loaded)
    for request in channel.requests():
        assert isinstance(request, Request)
        process_state.reseed()
        state = process_state.global_state()
        try:
            reply = answer(subject, request)
        except (Exception, SystemExit) as error:
            failure = of_exception(error)
            lost = failure.status in (Status.OUT_OF_MEMORY_HOST, Status.OUT_OF_MEMORY_DEVICE)
            channel.send(Failed(failure=failure, last=lost))
            if lost:  # the process is not fit for another row
                return
            state.restore()
            continue
        if changed := state.changed():
            state.restore()
        channel.send(replace(reply, changed=tuple(changed)))
        if request.release:
            with subject.alone(request.row):
                torch.cuda.empty_cache()


def load(job: Job) -> tuple[Subject, Ready]:
    """The one subject of the job's rows: they share their weights. A row that replaces the loop may have the full model beside."""
    made = [rows.resolve(name, job.model) for name in job.rows]
    planned = [row for row in made if row.policies.generator is None]
    replacing = [row for row in made if row.policies.generator is not None]
    subject: Subject | None = None
    weights, parameters, plans = dict[str, str](), dict[str, int](), dict[str, str]()
    if planned:
        pipe = pipeline_of(job, planned)
        options = job.options
        subject = engine = EngineSubject(pipe=pipe, cfg=options.cfg, top_k=options.top_k, top_p=options.top_p)
        weights = pipe.weights
        parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in pipe.backbones.items()}
        for row in planned:
            try:
                plans[row.name] = pipe.compile(row)[0].digest
            except ValueError:  # said when the row is asked for
                continue
    if replacing:
        (row,) = replacing
        own, read, parameters = _generator(job, row)
        subject = Neighbours(own=own, row=row.name, others=engine) if planned else own
        weights = {**weights, **read}
    assert subject is not None
    return subject, _loaded(job, made, weights=weights, parameters=parameters, plans=plans)


def _generator(job: Job, row: Row) -> tuple[GeneratorSubject, dict[str, str], dict[str, int]]:
    """With the hashes of the files that it was given, and its parameters."""
    assert row.policies.generator is not None
    owned, options, files = row.policies.generator, job.options, {}
    if isinstance(owned.policy, TrainedGenerator):
        wanted = ("vae", PART, *(["main"] if isinstance(owned.policy, TaughtGenerator) else []))
        files = {part: Path(path) for part, path in (job.files or {}).items() if part in wanted}
    subject = load_generator(
        owned.policy,
        model=job.model,
        device=torch.device(options.device),
        dtype=options.dtype,
        seed=options.seed,
        vae=files.get("vae"),
        main=files.get("main"),
        weights=files.get(PART),
    )
    count = owned.policy.work(options.batch).parameters
    hashes = {part: file_hash(path) for part, path in files.items()}
    return subject, hashes, {} if count is None else {owned.plugin: count}


def _loaded(
    job: Job, made: list[Row], *, weights: dict[str, str], parameters: dict[str, int], plans: dict[str, str]
) -> Ready:
    return Ready(
        job=job.digest,
        environment=environment(job.options.device, threads=torch.get_num_threads()),
        weights=weights,
        parameters=parameters,
        plans=plans,
        code=code_of(info for row in made for info in row.plugins),
        disturbed=_disturbed(job.options.device),
    )


def pipeline_of(job: Job, made: list[Row]) -> Pipeline:
    options = job.options
    further = {part: spec for row in made for part, spec in row.policies.backbones.items()}
    if job.files is None:
        pipe = load_pipeline(options.model, device=options.device, dtype=options.dtype, random=True, seed=options.seed)
        pipe.load_further(further)
    else:
        files = job.files
        pipe = load_pipeline(
            options.model,
            vae=files["vae"],
            var=files["main"],
            companions={part: files[part] for part in further if part in files},
            device=options.device,
            dtype=options.dtype,
        )
    for part, spec in further.items():  # a file says sizes, and not what the method calls such a model
        loaded = pipe.backbones[part]
        if replace(loaded.spec, name=spec.name) == spec:
            loaded.spec = spec
    pipe.graphs = pipe.graphs and options.graphs
    if options.compile != "off":
        pipe.compile_layers(mode=options.compile)
    return pipe


def answer(subject: Subject, request: Request) -> Reply:
    ask = Ask(row=request.row, labels=request.labels, seed=request.seed, first=request.first)
    if request.look is None:
        with threads(request.threads):
            made, images, marks = timed_call.timed(subject, ask)
        traced = None if made.trace is None else made.trace.digest
        chunk = _kept(request.keep, made, images)
        return _reply(request, made, images, marks=marks, chunk=chunk, trace_sha256=traced)
    look = {"memory": _memory, "outside": _outside, "largest": _largest, "energy": _energy}[request.look]
    return look(subject, ask, request)


def _memory(subject: Subject, ask: Ask, request: Request) -> Reply:
    weights, launched = subject.weight_bytes(ask.row), _launched(subject, ask)
    with subject.alone(ask.row):
        # Sets up what every row needs, and what libraries keep for the stream that the next call runs on: not that of captures.
        subject.make(Ask(row=ask.row, labels=ask.labels[:1], seed=ask.seed))
        made, peaks = memory.peaks(lambda: subject.make(ask), weights=weights, device=subject.device)
    timed_call.check_images(made.images, batch=len(ask.labels), side=subject.model.image_side)
    stated = subject.generator.work(len(ask.labels)) if isinstance(subject, GeneratorSubject) else None
    kernel = attention_kernel(lambda: subject.make(ask))
    return _reply(
        request,
        made,
        to_uint8(made.images),
        peaks=peaks,
        trace=made.trace,
        work=None if stated is None else _stated(stated),
        products=None if stated is None else _products(stated, lambda: subject.make(ask)),
        held=None
        if stated is None or not stated.steps
        else held_through_a_step(lambda: subject.make(ask), steps=stated.steps),
        from_bytes=stated is not None and _are_bytes(made.images),
        kernel=kernel.name,
        arithmetic=kernel.arithmetic + launched,
        missing={} if kernel.missing is None else {"kernel": kernel.missing},
    )


def _launched(subject: Subject, ask: Ask) -> str:
    captured = isinstance(subject, EngineSubject) and subject.is_captured(ask)
    return "; launched as CUDA graphs" if captured else ""


def _are_bytes(images: torch.Tensor) -> bool:
    levels = images.float() * 255
    return bool(((levels - levels.round()).abs() < 1e-3).all())


def _products(work: Work, call: Callable[[], object]) -> CountedFlops:
    """By torch's own counter, which sees attention's products where they are written out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    stated = None if work.flops is None else work.flops + work.decoder_flops
    return CountedFlops(stated=stated, counted=counter.get_total_flops())


def _stated(work: Work) -> Totals:
    return Totals(
        flops=work.flops,
        steps=work.steps,
        layer_tokens=work.layer_tokens,
        state_peak_bytes=work.cache_peak_bytes,
        state_end_bytes=work.cache_end_bytes,
    )


def _outside(subject: Subject, ask: Ask, request: Request) -> Reply:
    with subject.alone(ask.row):
        made, outside = memory.seen_from_outside(subject, ask)
    images = to_uint8(made.images)
    repeated = len(images) - len({image.tobytes() for image in images})
    return _reply(request, made, images, outside=outside, repeated=repeated)


def _largest(subject: Subject, ask: Ask, request: Request) -> Reply:
    def make(batch: int) -> Answer:
        labels = tuple(place % subject.model.classes for place in range(batch))
        return subject.make(Ask(row=ask.row, labels=labels, seed=ask.seed))

    with subject.alone(ask.row):
        largest = memory.largest_by_trying(make, device=subject.device)
    return Reply(row=request.row, images_sha256="", tokens_sha256=None, largest=largest)


def _energy(subject: Subject, ask: Ask, request: Request) -> Reply:
    def call() -> int:
        subject.make(ask)
        return len(ask.labels)

    subject.prepare(ask)
    try:
        found = energy(call, device=subject.device)
    except (nvml.NvmlError, powercap.PowercapError) as error:
        return Reply(row=request.row, images_sha256="", tokens_sha256=None, missing={"energy": str(error)})
    return Reply(row=request.row, images_sha256="", tokens_sha256=None, energy=found)


def _reply(request: Request, made: Answer, images: Images, **parts: Any) -> Reply:
    tokens = _tokens(made)
    return Reply(
        row=request.row,
        images_sha256=array_hash(images),
        tokens_sha256=None if tokens is None else array_hash(tokens),
        **parts,
    )


def _tokens(made: Answer) -> NDArray[np.int64] | None:
    return None if made.tokens is None else made.tokens.cpu().numpy()


def _kept(keep: str | None, made: Answer, images: Images) -> Chunk | None:
    if keep is None:
        return None
    tokens = _tokens(made)
    with open(keep, "wb") as file:
        write_made(file, images, tokens)
    return Chunk(path=keep, sha256=file_hash(keep))


def _disturbed(device: str) -> tuple[int, ...] | None:
    """Other processes on the GPU; None where that cannot be seen."""
    if not device.startswith("cuda"):
        return None
    _, uuid, pci = gpu_identity(device)
    try:
        return nvml.foreign_processes(uuid=uuid, pci=pci, own=relatives())
    except nvml.NvmlError:
        return None
