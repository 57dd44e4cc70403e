"""Makes a row's record from its findings. While a part is missing its status is `interrupted`: a resumed run measures it."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from varbench.measure.environment import environment
from varbench.plan import presets
from varbench.record import (
    Environment,
    Memory,
    Model,
    PlanSummary,
    Quality,
    Record,
    Score,
    Status,
    Totals,
    Training,
    WeightFile,
)
from varbench.record.option_forms import as_arguments
from varbench.record.options import Options
from varbench.record.plan_summary import plan_summary, trace_totals
from varbench.rows import UPSTREAM
from varbench.run import identity, pitfalls, verdict
from varbench.run.findings import Findings, Looks
from varbench.run.prepare import RowInRun, Run, hardware_like
from varbench.run.timing import timing
from varbench.run.training_section import section


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fill(
    run: Run,
    row: RowInRun,
    found: Findings,
    *,
    floors: dict[str, Score],
    others: Mapping[str, Findings] = {},
) -> Record:
    """The record; what is not known yet is null, with a reason. `others` is what is known of the run's other rows."""
    missing: dict[str, str] = {}
    status, reason = _status(run, row, found)
    complete = status is Status.COMPLETE
    times = timing(run, row, found, missing)
    memory = _memory(run, found.looks, missing)
    quality = _quality(run, row, found, floors, missing)
    if not complete:
        for part, value in (("timing", times), ("memory", memory), ("quality", quality)):
            if value is None:
                missing[part] = reason or "not reached"
    scored = found.seen.scored if found.seen else None
    if row.identity.denominator is not None:
        missing["distance"] = "the row is the full model"
    if row.plan is None and row.replaces_loop:
        missing["plan"] = "the row replaces the loop, so it has no plan"
    if found.seen is not None:
        missing |= found.seen.missing
    energy = found.looks.energy if found.looks else None
    return Record(
        run=run.name,
        row=row.identity,
        model=_model(run, row, found),
        protocol=_protocol(run, row, found, missing),
        environment=_environment(run, found),
        command=shlex.join(as_arguments(run.options, row=row.name, study=row.resolved.study)),
        code_hash=identity.code_hash(),
        inputs_hash=row.inputs,
        started=found.started or now(),
        finished=now() if status is not Status.INTERRUPTED else None,
        status=status,
        reason=reason,
        exit_code=found.exit_code,
        stderr_tail=found.stderr_tail or None,
        traceback=found.failure.traceback if found.failure else None,
        validity=verdict.validity(run, row, found, floors, others, complete=complete),
        plan=_plan(run, row, found, missing),
        trace=_ran(row, found.looks),
        timing=times,
        memory=memory,
        energy=energy,
        quality=quality,
        distance=scored.distance if scored else None,
        training=_training(run, row, found),
        calibration=row.calibration,
        provenance=row.resolved.source,
        published=row.resolved.published if pitfalls.another_recipe(run, row) is None else (),
        study=row.resolved.study_words,
        samples=scored.samples if scored else None,
        weights=_weights(run, row, found),
        metrics=found.seen.metrics if found.seen else {},
        warnings=verdict.warnings(run, row, found),
        missing=missing,
    )


def _status(run: Run, row: RowInRun, found: Findings) -> tuple[Status, str | None]:
    if found.failure is not None:
        return found.failure.status, found.failure.reason
    scored = found.seen is not None or not run.is_scored(row.name)
    looked_at = found.looks is not None or run.options.quick
    if len(found.speed) == run.rounds_of(row.name) and looked_at and scored:
        return Status.COMPLETE, None
    return Status.INTERRUPTED, "the run has not come to the end of this row; go on with --resume"


def _model(run: Run, row: RowInRun, found: Findings) -> Model:
    weights: str | None = None
    if row.replaces_loop:
        given = "trained" if row.resolved.trains_generator else "files"
        weights = given if row.resolved.trained_generator else "random"
    elif found.loaded is not None:
        weights = "random" if run.files is None else "trained" if found.trained and found.trained.log else "files"
        if weights == "files" and run.options.weights is None:
            weights = "shipped"
    counts = dict(found.loaded.parameters) if found.loaded else {}
    if row.plan is not None:
        used = {name for name, _ in row.plan.backbones}
        counts = {name: count for name, count in counts.items() if name in used}
    return Model(preset=run.options.model, spec=run.model.to_json(), parameters=counts, weights=weights)


def _protocol(run: Run, row: RowInRun, found: Findings, missing: dict[str, str]) -> Options:
    """What was asked for, with what was found out."""
    images, classes = run.options.images, run.model.classes
    sharing = [other for other in run.rows.values() if other.resolved.weight_set == row.resolved.weight_set]
    if found.looks is None:
        missing |= dict.fromkeys(
            ("protocol.kernel", "protocol.arithmetic"), "the look at memory, which finds it, was not taken"
        )
    return replace(
        run.options,
        kernel=found.looks.kernel if found.looks else None,
        arithmetic=found.looks.arithmetic if found.looks else None,
        labels=f"balanced, {images / classes:g} a class" if images else "balanced",
        accounting=row.resolved.accounting,
        row_order=tuple(run.rows),
        shared_child=len(sharing) > 1,
    )


def _environment(run: Run, found: Findings) -> Environment:
    here = _here()
    if found.loaded is not None:
        return replace(found.loaded.environment, load=here.load)
    # No child got as far as naming the GPU.
    return here if run.options.device == "cpu" else replace(here, device=run.options.device)


@functools.cache
def _here() -> Environment:
    """As the first record is begun: later the load is the run's own."""
    return environment("cpu")


def _plan(run: Run, row: RowInRun, found: Findings, missing: dict[str, str]) -> PlanSummary | None:
    if row.plan is None:
        return None
    where = _environment(run, found)
    options, memory = run.options, where.device_memory_bytes
    summary = _summary(options.batch, options.dtype, where.device, where.cores, memory, options.filters, row)
    if summary.hardware is None:
        missing["plan.hardware"] = f"no data sheet of {where.device} is known, and it was not calibrated"
    return summary


@functools.lru_cache(maxsize=4096)
def _summary(
    batch: int, dtype: str, device: str, cores: int, memory: int | None, filters: bool, row: RowInRun
) -> PlanSummary:
    """A record is written many times, and its plan need be summarised only once."""
    resolved = row.resolved
    assert resolved.plan is not None
    return plan_summary(
        resolved.plan,
        batch=batch,
        dtype=dtype,
        device="cpu" if device == "cpu" else "cuda",
        filtered=filters,
        hardware=hardware_like(device, cores, memory),
        other_accounting=resolved.other_plan,
    )


def _ran(row: RowInRun, looks: Looks | None) -> Totals | None:
    if looks is None:
        return None
    if looks.trace is not None and row.plan is not None:
        return trace_totals(looks.trace, row.plan)
    return looks.work


def _memory(run: Run, looks: Looks | None, missing: dict[str, str]) -> Memory | None:
    if looks is None:
        if run.options.quick:
            missing["memory"] = "a quick look leaves the memory pass out"
        return None
    peaks, trace = looks.peaks, looks.trace
    for key, why in looks.missing.items():
        missing[{"energy": "energy", "kernel": "protocol.kernel"}.get(key, f"memory.{key}")] = why
    peaks_of_state = trace.state_peak if trace else None if looks.held is None else (looks.held,)
    state = None if peaks_of_state is None else max(peaks_of_state)
    activations = None
    if trace is None:
        missing["memory.state_after_bytes"] = "the row has no steps to look into"
    if state is None:
        missing["memory.state_peak_bytes"] = "the row does not say how many steps it has"
        missing["memory.activations_peak_bytes"] = "the row does not say how much of the peak is state"
    elif peaks.allocated is not None:
        activations = max(0, peaks.allocated - peaks.weights - state)
    return Memory(
        batch=looks.batch,
        weights_bytes=peaks.weights,
        state_peak_bytes=peaks_of_state,
        state_after_bytes=trace.state_after if trace else None,
        activations_peak_bytes=activations,
        torch_allocated_bytes=peaks.allocated,
        torch_reserved_bytes=peaks.reserved,
        nvml_process_bytes=peaks.nvml_process,
        nvml_board_bytes=peaks.nvml_board,
        rss_growth_bytes=peaks.resident,
        left_bytes=peaks.left,
    )


def _quality(
    run: Run, row: RowInRun, found: Findings, floors: dict[str, Score], missing: dict[str, str]
) -> Quality | None:
    scored = found.seen.scored if found.seen else None
    if scored is not None and scored.quality is not None:
        return replace(scored.quality, floors=floors)
    if not run.has_trained_weights(row.name):
        missing["quality"] = "the weights are random"
    elif row.name == UPSTREAM:
        missing["quality"] = "the same weights and arithmetic as the lossless row, where it is measured"
    elif lacking := pitfalls.lacking_images(run.options):
        missing["quality"] = lacking
    elif run.options.images == 0:
        missing["quality"] = "no images were asked for, or there is no reference to score against"
    elif scored is not None:
        missing["quality"] = "there is no reference to score against"
    return None


def _training(run: Run, row: RowInRun, found: Findings) -> Training | None:
    log = found.trained.log if found.trained else None
    if log is None:
        return None
    training = section(log, recipe=row.resolved.trained_by, model=run.model.name)
    if presets.preset(run.options.model).draws_images:
        return training
    command = shlex.join(as_arguments(run.options, row=row.name))  # its weights and data are the user's
    return replace(training, command=command)


def _weights(run: Run, row: RowInRun, found: Findings) -> tuple[WeightFile, ...]:
    trained = found.trained
    hashes = {**run.hashes, **(trained.hashes if trained else {})}
    used = {"vae", "main", *row.resolved.backbones}
    if row.replaces_loop:
        used = {"vae", "generator"} if row.resolved.trains_generator else set()
        used |= {"vae", "main"} if row.resolved.taught_generator else set()
    files = {part: path for part, path in (run.files or {}).items() if part in used}
    files |= {part: path for part, path in (trained.files if trained else {}).items() if part in used}
    named = [WeightFile(role=role, name=_base(path), sha256=hashes[role]) for role, path in files.items()]
    named += [
        WeightFile(role=key, name=_base(row.resolved.read[key]), sha256=sha256) for key, sha256 in row.read.items()
    ]
    return (*named, *(found.seen.scored.weights if found.seen else ()))


def _base(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
