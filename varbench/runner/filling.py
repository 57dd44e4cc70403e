"""Fills a row's record from what its children have said."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from varbench import rows, stats
from varbench.cost import work
from varbench.measure.environment import environment
from varbench.measure.largest import largest_by_plan
from varbench.records import (
    Distance,
    Energy,
    Environment,
    Evaluation,
    LargestBatch,
    LossCurve,
    Memory,
    Model,
    Notice,
    PerScale,
    PlanSummary,
    Protocol,
    Provenance,
    Quality,
    Record,
    Samples,
    Score,
    Status,
    Timing,
    TimingColumn,
    Totals,
    Training,
    Validity,
    Verdict,
    WeightFile,
    plan_summary,
)
from varbench.records import Row as RowOfRecord
from varbench.runner import identity
from varbench.runner.options import FEWEST_ROUNDS, Options, as_arguments
from varbench.runner.prepare import Measured, Prepared, hardware_like

TOO_FAST = 0.7
"""An equal repeat that takes less than this share of a fresh call has been remembered."""

WITHOUT_CAUSE = 0.2
"""A gain in speed beyond this needs less work as its cause."""

CHECKED = (
    "ran as planned, step by step", "state equals the plan's to the byte", "equal calls gave equal tokens",
    "nothing hidden between steps, nothing left behind", "no global state changed", "an equal call is no faster",
)  # fmt: skip
CHECKED_QUICKLY = ("ran as planned, step by step", "state equals the plan's to the byte", "no global state changed")
CHECKED_OUTSIDE = ("equal calls gave equal images", "no global state changed", "an equal call is no faster")
"""Of a row that replaces the loop."""


@dataclass(frozen=True)
class Run:
    """What all rows of a run share."""

    name: str
    options: Options
    prepared: Prepared
    order: tuple[str, ...]
    quality_rows: frozenset[str]
    available_memory: int | None


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fill(run: Run, one: Measured, *, floors: dict[str, Any], aa_floor: float | None) -> Record:
    """The record as far as it goes. A row that lacks a part is `interrupted`, so that a resumed run goes on with it."""
    missing: dict[str, str] = {}
    status, reason = _status(run, one)
    complete = status is Status.COMPLETE
    timing = _timing(run, one, aa_floor, missing)
    memory = _memory(run, one, missing)
    quality, distance = _quality(run, one, floors, missing)
    if not complete:
        for part, value in (("timing", timing), ("memory", memory), ("quality", quality)):
            if value is None:
                missing[part] = reason or "not reached"
    return Record(
        run=run.name,
        row=_row(one),
        model=_model(run, one),
        protocol=_protocol(run, one),
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
        validity=_validity(run, one, complete=complete, floor=aa_floor or 0.0),
        plan=_plan(run, one, missing),
        trace=_trace(one),
        timing=timing,
        memory=memory,
        energy=_energy(one, missing),
        quality=quality,
        distance=distance,
        training=_training(one),
        provenance=None if one.provenance is None else Provenance(**_own_fields(one.provenance)),
        samples=_samples(one),
        weights=_weights(run, one),
        warnings=_warnings(run, one, timing),
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


def _row(one: Measured) -> RowOfRecord:
    owner = one.row.recipe_plugin
    points = [s.point for s in one.row.settings if s.point is not None and s.plugin in (owner, one.row.plugins[0].name)]
    return RowOfRecord(
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
    used = {name for name, _ in one.plan.backbones} if one.plan else set()
    counts = {name: n for name, n in (one.hello or {}).get("parameters", {}).items() if name in used}
    return Model(preset=run.options.model, spec=run.prepared.model.to_json(), parameters=counts, weights=weights)


def _protocol(run: Run, one: Measured) -> Protocol:
    options = run.options
    classes = run.prepared.model.classes
    images = options.images if run.quality_rows else 0
    return Protocol(
        batch=options.batch,
        dtype=options.dtype,
        compile=options.compile,
        kernel=_ran(one).get("kernel"),
        cfg=options.cfg,
        top_k=options.top_k,
        top_p=options.top_p,
        images=images,
        labels=f"balanced, {options.images / classes:g} a class" if images else "balanced",
        seed=options.seed,
        seed_scheme="seed, image, scale, position",
        accounting=one.row.accounting,
        row_order=run.order,
        rounds=options.rounds,
        shared_child=sum(other.weight_set == one.weight_set for other in run.prepared.measured.values()) > 1,
        recipe_steps=options.steps,
        quick=options.quick,
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
    said = _ran(one)
    return Totals(**said["trace"]) if "trace" in said else None


def _ran(one: Measured) -> dict[str, Any]:
    """What a child says of what ran: that of the memory pass, else of the first round."""
    return one.memory or next((one.speed[number] for number in sorted(one.speed)), {})


def _timing(run: Run, one: Measured, aa_floor: float | None, missing: dict[str, str]) -> Timing | None:
    rounds = [one.speed[number] for number in sorted(one.speed)]
    if not rounds:
        return None
    columns = []
    for regime in ("throughput", "latency"):
        for column in ("transformer", "with_decoder", "end_to_end"):
            raw = [tuple(found["columns"].get(regime, {}).get(column, ())) for found in rounds]
            if not all(raw):
                continue
            summary = stats.summarise(raw)
            wall = [second for found in rounds for second in found["wall"].get(regime, ())]
            clock = rounds[0]["clocks"][column]
            columns.append(
                TimingColumn(
                    column=column,
                    regime=regime,
                    batch=run.options.batch if regime == "throughput" else 1,
                    clock=clock,
                    rounds=tuple(raw),
                    median=summary.median,
                    low=summary.low,
                    high=summary.high,
                    iqr=summary.iqr,
                    wall_median=stats.median(wall) if wall and column == "with_decoder" else None,
                )
            )
    first = rounds[0]
    scales = first.get("per_scale")
    largest = _largest(run, one, missing)
    return Timing(
        columns=tuple(columns),
        anchor=_anchor(rounds),
        per_scale=None if scales is None else PerScale(**{**scales, "seconds": tuple(scales["seconds"])}),
        largest_batch=largest,
        compile_seconds=_compile_seconds(run, first),
        first_call_seconds=first["first_call"],
        depth_switch_seconds=first.get("switch"),
        aa_floor=aa_floor,
    )


def _anchor(rounds: list[dict[str, Any]]) -> tuple[tuple[float, ...], ...] | None:
    return tuple(tuple(said["anchor"]) for said in rounds) if all("anchor" in said for said in rounds) else None


def _compile_seconds(run: Run, said: dict[str, Any]) -> float | None:
    """What the first call took beyond the second of the same shapes."""
    if run.options.compile == "off" or said.get("second_call") is None:
        return None
    return max(0.0, float(said["first_call"]) - float(said["second_call"]))


def _largest(run: Run, one: Measured, missing: dict[str, str]) -> LargestBatch | None:
    if tried := (one.memory or {}).get("largest"):
        return LargestBatch(**tried)
    if run.options.device != "cpu":
        missing["timing.largest_batch"] = "the bisection did not run"
        return None
    if one.plan is None:
        missing["timing.largest_batch"] = "there is no plan to bound it by"
        return None
    if run.available_memory is None:
        missing["timing.largest_batch"] = "the system does not say how much memory is free"
        return None
    return largest_by_plan(one.plan, dtype=run.options.dtype, free=run.available_memory)


def _memory(run: Run, one: Measured, missing: dict[str, str]) -> Memory | None:
    found = one.memory
    if found is None:
        if run.options.quick:
            missing["memory"] = "a quick look leaves the memory pass out"
        return None
    missing |= {f"memory.{key}": why for key, why in found["missing"].items()}
    return Memory(
        batch=found["batch"],
        weights_bytes=found["weights"],
        state_peak_bytes=tuple(found["state_peak"]) if "state_peak" in found else None,
        state_after_bytes=tuple(found["state_after"]) if "state_after" in found else None,
        activations_peak_bytes=found.get("activations"),
        torch_allocated_bytes=found.get("torch_allocated"),
        torch_reserved_bytes=found.get("torch_reserved"),
        nvml_process_bytes=found.get("nvml_process"),
        nvml_board_bytes=found.get("nvml_board"),
        rss_growth_bytes=found.get("rss_growth"),
    )


def _energy(one: Measured, missing: dict[str, str]) -> Energy | None:
    found = next((said["energy"] for said in one.speed.values() if "energy" in said), None)
    if found is None:
        return None
    if "missing" in found:
        missing["energy"] = found["missing"]
        return None
    return Energy(**found["figure"])


def _quality(
    run: Run, one: Measured, floors: dict[str, Any], missing: dict[str, str]
) -> tuple[Quality | None, Distance | None]:
    found = one.quality
    if found is None or "scores" not in found:
        trained = run.prepared.files is not None if one.generator is None else one.generator.trained
        if not trained:
            missing["quality"] = "the weights are random"
        elif one.denominator == "upstream":
            missing["quality"] = "the same weights and arithmetic as the lossless row, where it is measured"
        elif run.options.images == 0:
            missing["quality"] = "no images were asked for, or there is no reference to score against"
        quality = None
    else:
        quality = Quality(
            scores=tuple(Score(**score) for score in found["scores"]),
            floors={name: Score(**score) for name, score in floors.items()},
        )
    if one.denominator is not None:
        missing["distance"] = "the row is the full model"
    distance = Distance(**found["distance"]) if found and "distance" in found else None
    return quality, distance


def _samples(one: Measured) -> Samples | None:
    found = (one.quality or {}).get("samples")
    return None if found is None else Samples(**{**found, "labels": tuple(found["labels"])})


def _training(one: Measured) -> Training | None:
    """A recipe may have stages; their steps and seconds add up."""
    record = (one.training or {}).get("record")
    if record is None:
        return None
    stages: dict[str, dict[str, Any]] = record["stages"]
    first, steps = next(iter(stages.values())), sum(stage["steps"] for stage in stages.values())
    recipe = f"{one.row.recipe_plugin}@{one.row.recipe}"
    curves: list[LossCurve] = []
    evaluations: list[Evaluation] = []
    before = 0
    for name, stage in stages.items():
        title = f"{name}, " if len(stages) > 1 else ""
        for point, losses in stage["losses"].items():
            done = tuple(before + step for step, _ in losses)
            curves.append(LossCurve(point=title + point, steps=done, losses=tuple(loss for _, loss in losses)))
        evaluations += [_evaluation(look, before=before, data=record["data"]) for look in stage["evaluations"]]
        before += stage["steps"]
    return Training(
        key=record["key"],
        recipe=recipe,
        steps=steps,
        seconds=sum(stage["seconds"] for stage in stages.values()),
        seed=first["seed"],
        command=f"varbench train {recipe} --model {one.row.model.name} --steps {steps} --seed {first['seed']}",
        losses=tuple(curves),
        evaluations=tuple(evaluations),
    )


def _evaluation(look: dict[str, Any], *, before: int, data: str) -> Evaluation:
    score = Score(
        name="held-out loss", value=look["value"], low=look["low"], high=look["high"], n=look["n"], better="lower",
        implementation="varbench", features=None, weights_sha256=None, reference=data,
    )  # fmt: skip
    return Evaluation(step=before + look["step"], point=look["point"], score=score)


def _weights(run: Run, one: Measured) -> tuple[WeightFile, ...]:
    trained = (one.training or {}).get("hashes", {})
    pretrained = run.prepared.files if one.generator is None else None
    files = {**(pretrained or {}), **(one.training or {}).get("files", {})}
    found = [
        WeightFile(role=role, name=path.replace("\\", "/").rsplit("/", 1)[-1], sha256=trained.get(role) or identity.file_hash(path))
        for role, path in files.items()
    ]
    found += [WeightFile(**one) for one in (one.quality or {}).get("weights", ())]
    return tuple(found)


def _validity(run: Run, one: Measured, *, complete: bool, floor: float) -> Validity:
    if not complete:
        return Validity()
    said = [one.memory or {}, *one.speed.values()]
    findings = list(dict.fromkeys(finding for found in said for finding in found.get("findings", ())))
    if changed := sorted({name for found in said for name in found.get("changed", ())}):
        findings.append(f"the row changes global state: {', '.join(changed)}")
    repeats = [found["identical"] for found in one.speed.values() if found.get("identical") is not None]
    if repeats and max(repeats) < TOO_FAST:
        findings.append(f"an equal call takes {max(repeats):.0%} of a fresh one's time: something is remembered between calls")
    if gain := _gain_without_cause(run, one, floor):
        findings.append(gain)
    if findings:
        return Validity(verdict=Verdict.INVALID, reasons=tuple(findings))
    return Validity(verdict=Verdict.VALID, reasons=_checked(one))


def _checked(one: Measured) -> tuple[str, ...]:
    if one.memory is None:
        return CHECKED_QUICKLY
    return CHECKED if one.generator is None else CHECKED_OUTSIDE


def _gain_without_cause(run: Run, one: Measured, floor: float) -> str | None:
    """A row that is faster than the full model and does no less work has done something that its plan does not say."""
    full = run.prepared.measured[rows.FULL]
    if one.plan is None or full.plan is None or one.row.accounting != full.row.accounting:
        return None
    rounds = list(one.speed.values())
    theirs = _anchor(rounds)
    if theirs is None or len(rounds) < FEWEST_ROUNDS:
        return None  # too few rounds to say so of anybody
    gain = stats.ratio(theirs, [tuple(found["columns"]["throughput"]["transformer"]) for found in rounds])
    if stats.judge_ratio(gain, minimum=WITHOUT_CAUSE, floor=floor) != "better" or gain.low < 1 + WITHOUT_CAUSE:
        return None
    sizes = [work(plan, batch=run.options.batch, dtype=run.options.dtype) for plan in (one.plan, full.plan)]
    flops, moved = ([size.transformer_flops for size in sizes], [sum(s.bytes_moved for s in size.steps) for size in sizes])
    if flops[0] < flops[1] or moved[0] < moved[1]:
        return None
    return f"{gain.value:.2f} times as fast as the full model at no less work: {flops[0]:,} FLOPs and {flops[1]:,}"


def _warnings(run: Run, one: Measured, timing: Timing | None) -> tuple[Notice, ...]:
    found = []
    again = as_arguments(run.options, row=one.name, study=one.study)
    if timing is not None and one.failure is None:
        for column in timing.columns:
            if column.column != "transformer" or (run.options.quick and len(column.rounds) < FEWEST_ROUNDS):
                continue
            if warning := stats.spread_warning(f"{column.regime} time of the transformer", column.rounds):
                text, flag = warning
                command = shlex.join([*again[: again.index("--rounds")], *again[again.index("--rounds") + 2 :]])
                found.append(Notice(text=text, next_command=f"{command} {flag}" if flag else None))
    if disturbed := (one.hello or {}).get("disturbed"):
        found.append(Notice(text=f"{len(disturbed)} other processes were on the GPU", next_command="nvidia-smi"))
    if one.row.schedule is not None and one.weight_set == "pretrained":
        text = f"nothing was trained for {one.row.recipe}: the weights that were given were used as they are"
        found.append(Notice(text=text, next_command=f"{shlex.join(again)} --data FOLDER"))
    if run.options.quick:
        found.append(Notice(text="a quick look: few images, one round, short training; not to be compared"))
    if one.name == rows.FULL and run.prepared.files is None:
        found.append(Notice(text="the weights are random, so speed and memory are true and quality is unknown"))
    return tuple(found)
