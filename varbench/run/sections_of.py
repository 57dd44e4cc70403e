"""What a row's children measured, in the words of a record; a part that lacks is said to lack, and why."""

from __future__ import annotations

import shlex
from typing import Any

from varbench.base import stats
from varbench.measure.largest import largest_by_plan
from varbench.plan import presets
from varbench.record import (
    Distance,
    Energy,
    Evaluation,
    LargestBatch,
    LossCurve,
    Memory,
    PerScale,
    Quality,
    Samples,
    Score,
    Timing,
    TimingColumn,
    Training,
)
from varbench.record.option_forms import as_arguments
from varbench.run.prepare import Measured, Run


def timing(run: Run, one: Measured, aa_floor: float | None, missing: dict[str, str]) -> Timing | None:
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
        anchor=anchor(rounds),
        per_scale=None if scales is None else PerScale(**{**scales, "seconds": tuple(scales["seconds"])}),
        largest_batch=largest,
        compile_seconds=_compile_seconds(run, first),
        first_call_seconds=first["first_call"],
        depth_switch_seconds=first.get("switch"),
        aa_floor=aa_floor,
    )


def anchor(rounds: list[dict[str, Any]]) -> tuple[tuple[float, ...], ...] | None:
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


def memory(run: Run, one: Measured, missing: dict[str, str]) -> Memory | None:
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


def energy(one: Measured, missing: dict[str, str]) -> Energy | None:
    found = next((said["energy"] for said in one.speed.values() if "energy" in said), None)
    if found is None:
        return None
    if "missing" in found:
        missing["energy"] = found["missing"]
        return None
    return Energy(**found["figure"])


def quality(
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
        elif found is not None:
            missing["quality"] = "there is no reference to score against"
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


def samples(one: Measured) -> Samples | None:
    found = (one.quality or {}).get("samples")
    return None if found is None else Samples(**{**found, "labels": tuple(found["labels"])})


def training(run: Run, one: Measured) -> Training | None:
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
    command = f"varbench train {recipe} --model {one.row.model.name} --steps {steps} --seed {first['seed']}"
    if not presets.preset(one.row.model.name).assets:  # its weights and data are the user's
        command = shlex.join(as_arguments(run.options, row=one.name))
    return Training(
        key=record["key"],
        recipe=recipe,
        steps=steps,
        seconds=sum(stage["seconds"] for stage in stages.values()),
        seed=first["seed"],
        command=command,
        losses=tuple(curves),
        evaluations=tuple(evaluations),
    )


def _evaluation(look: dict[str, Any], *, before: int, data: str) -> Evaluation:
    score = Score(
        name="held-out loss", value=look["value"], low=look["low"], high=look["high"], n=look["n"], better="lower",
        implementation="varbench", features=None, weights_sha256=None, reference=data,
    )  # fmt: skip
    return Evaluation(step=before + look["step"], point=look["point"], score=score)
