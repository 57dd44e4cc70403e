"""Fills a row's record from what its children have said."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from varbench.base import hashing
from varbench.measure.environment import environment
from varbench.policies import Published
from varbench.record import (
    Environment,
    MethodSource,
    Model,
    PlanSummary,
    PublishedLine,
    Record,
    RowIdentity,
    Status,
    StudyWords,
    Totals,
    WeightFile,
    plan_summary,
)
from varbench.record.option_forms import as_arguments
from varbench.record.options import Options
from varbench.rows.grammar import Row
from varbench.run import identity, verdict
from varbench.run import sections_of as figures
from varbench.run.prepare import Measured, Run, hardware_like


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fill(run: Run, one: Measured, *, floors: dict[str, Any], aa_floor: float | None) -> Record:
    """The record as far as it goes. A row that lacks a part is `interrupted`, so that a resumed run goes on with it."""
    missing: dict[str, str] = {}
    status, reason = _status(run, one)
    complete = status is Status.COMPLETE
    timing = figures.timing(run, one, aa_floor, missing)
    memory = figures.memory(run, one, missing)
    quality, distance = figures.quality(run, one, floors, missing)
    if not complete:
        for part, value in (("timing", timing), ("memory", memory), ("quality", quality)):
            if value is None:
                missing[part] = reason or "not reached"
    return Record(
        run=run.name,
        row=_row(one),
        model=_model(run, one),
        protocol=_protocol(run, one, missing),
        environment=_environment(run, one),
        command=shlex.join(as_arguments(run.options, row=one.name, study=one.study)),
        code_hash=identity.code_hash(),
        inputs_hash=one.inputs,
        started=one.started or now(),
        finished=now() if status is not Status.INTERRUPTED else None,
        status=status,
        reason=reason,
        exit_code=one.exit_code,
        stderr_tail=one.stderr_tail or None,
        traceback=one.failure.traceback if one.failure else None,
        validity=verdict.validity(run, one, complete=complete, floor=aa_floor or 0.0),
        plan=_plan(run, one, missing),
        trace=_trace(one),
        timing=timing,
        memory=memory,
        energy=figures.energy(one, missing),
        quality=quality,
        distance=distance,
        training=figures.training(run, one),
        provenance=None if one.provenance is None else MethodSource(**_own_fields(one.provenance)),
        published=tuple(_published_line(line) for line in one.row.published),
        study=_study(one.row),
        samples=figures.samples(one),
        weights=_weights(run, one),
        warnings=verdict.warnings(run, one, timing),
        missing=missing,
    )


def is_whole(run: Run, one: Measured) -> bool:
    """Whether every part that was asked for is there."""
    scored = one.quality is not None or one.name not in run.quality_rows
    remembered = one.memory is not None or run.options.quick
    return len(one.speed) == run.options.rounds and remembered and scored


def _status(run: Run, one: Measured) -> tuple[Status, str | None]:
    if one.failure is not None:
        return one.failure.status, one.failure.reason
    if is_whole(run, one):
        return Status.COMPLETE, None
    return Status.INTERRUPTED, "the run has not come to the end of this row; go on with --resume"


def _own_fields(found: Any) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in fields(found)}


def _published_line(line: Published) -> PublishedLine:
    return PublishedLine(figures=dict(line.figures), grade=line.grade, source=line.source, conditions=line.conditions)


def _study(row: Row) -> StudyWords | None:
    study = row.study
    return None if study is None else StudyWords(title=study.title, caption=study.caption, place=row.place)


def _row(one: Measured) -> RowIdentity:
    owner = one.row.recipe_plugin
    points = [s.point for s in one.row.settings if s.point is not None and s.plugin in (owner, one.row.plugins[0].name)]
    return RowIdentity(
        row=one.name,
        plugins=one.plugins,
        recipe=one.row.recipe if one.row.schedule is not None else None,
        point=points[0] if points else None,
        params=dict(one.row.parameters),
        denominator=one.denominator,
        study=one.study,
    )


def _model(run: Run, one: Measured) -> Model:
    weights: str | None = None
    if one.generator is not None:
        weights = "files" if one.generator.trained else "random"
    elif one.hello is not None:
        weights = "random" if run.prepared.files is None else "trained" if one.training else "files"
        if weights == "files" and run.options.weights is None:
            weights = "shipped"
    counts = dict((one.hello or {}).get("parameters", {}))
    if one.plan is not None:
        used = {name for name, _ in one.plan.backbones}
        counts = {name: count for name, count in counts.items() if name in used}
    return Model(preset=run.options.model, spec=run.prepared.model.to_json(), parameters=counts, weights=weights)


def _protocol(run: Run, one: Measured, missing: dict[str, str]) -> Options:
    """What was asked for, with what was found out."""
    images, classes = run.options.images, run.prepared.model.classes
    found = one.memory or {"kernel_missing": "the memory pass, which looks for it, did not run"}
    if found.get("kernel") is None:
        missing["protocol.kernel"] = found["kernel_missing"]
    return replace(
        run.options,
        kernel=found.get("kernel"),
        labels=f"balanced, {images / classes:g} a class" if images else "balanced",
        accounting=one.row.accounting,
        row_order=run.order,
        shared_child=sum(other.weight_set == one.weight_set for other in run.prepared.measured.values()) > 1,
    )


def _environment(run: Run, one: Measured) -> Environment:
    if one.hello is not None:
        return Environment(**one.hello["environment"])
    found = environment("cpu")  # no child got as far as naming the GPU
    return found if run.options.device == "cpu" else Environment(**{**_own_fields(found), "device": run.options.device})


def _plan(run: Run, one: Measured, missing: dict[str, str]) -> PlanSummary | None:
    if one.plan is None:
        if one.generator is not None:
            missing["plan"] = "the row replaces the loop, so it has no plan"
        return None
    where = _environment(run, one)
    hardware = hardware_like(where.device, where.cores)
    key = None if hardware is None else hardware.name
    if key not in one.summaries:  # a record is written many times, and its plan stays
        one.summaries[key] = plan_summary(
            one.plan,
            batch=run.options.batch,
            dtype=run.options.dtype,
            hardware=hardware,
            other_accounting=one.other_plan,
        )
    return one.summaries[key]


def _trace(one: Measured) -> Totals | None:
    said = one.ran
    return Totals(**said["trace"]) if "trace" in said else None


def _weights(run: Run, one: Measured) -> tuple[WeightFile, ...]:
    trained = (one.training or {}).get("hashes", {})
    used = {"vae", "main", *one.row.policies.backbones} if one.generator is None else set()
    pretrained = {role: path for role, path in (run.prepared.files or {}).items() if role in used}
    files = {**pretrained, **(one.training or {}).get("files", {})}
    found = [
        WeightFile(role=role, name=_base(path), sha256=trained.get(role) or hashing.file_hash(path))
        for role, path in files.items()
    ]
    found += [
        WeightFile(role=key, name=_base(str(one.row.parameters[key])), sha256=sha256)
        for key, sha256 in one.read.items()
    ]
    found += [WeightFile(**network) for network in (one.quality or {}).get("weights", ())]
    return tuple(found)


def _base(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
