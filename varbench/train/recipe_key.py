"""What a recipe's training is made of, and the key by which its weights are found again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from varbench import rows
from varbench.base.hashing import file_hash, json_digest
from varbench.data.image_set import ImageSet
from varbench.engine.teacher import teacher_plan
from varbench.errors import UserError, did_you_mean
from varbench.plan.compiler import compile_plan
from varbench.policies import Stage, TrainingSchedule, TrainStep
from varbench.rows.grammar import Row
from varbench.train.order import uniforms
from varbench.train.own_numbers import own_content
from varbench.train.trainer import Budget
from varbench.train.training_options import ByStage


def budgets_of(
    schedule: TrainingSchedule, budget: Budget, by_stage: ByStage | None = None
) -> list[tuple[Stage, Budget]]:
    """Each stage with its part of the steps; the last takes what rounding leaves."""
    stages, differing = tuple(schedule.stages()), by_stage or {}
    names = [stage.name for stage in stages]
    for name in differing:
        if name not in names:
            raise UserError(f"stages.{name}: no such stage; there are {', '.join(names)}.{did_you_mean(name, names)}")
    shares = [stage.share for stage in stages]
    if not stages or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"the stages' shares of the steps are {shares}; they must be above 0 and add up to 1")
    ends = [round(budget.steps * sum(shares[: place + 1])) for place in range(len(stages))]
    parts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    for stage, steps in zip(stages, parts, strict=True):
        if steps < 1:
            raise UserError(
                f"of {budget.steps} steps none is left for the stage {stage.name!r} and its share of {stage.share:g}; give "
                f"at least {math.ceil(1 / min(shares))} --steps"
            )
    return [
        (stage, replace(budget, steps=steps, **differing.get(stage.name, {})))
        for stage, steps in zip(stages, parts, strict=True)
    ]


def recipe_key(
    row: Row,
    budget: Budget,
    *,
    vae: Path,
    pretrained: Mapping[str, Path],
    data: ImageSet,
    by_stage: ByStage | None = None,
) -> str:
    assert row.schedule is not None
    points: dict[str, set[str]] = {}
    answers, own_loss = [], False
    stages = budgets_of(row.schedule, budget)
    for stage, part in stages:
        steps = [
            row.schedule.at(stage, step, part.steps, uniforms(seed=budget.seed, step=step))
            for step in range(part.steps)
        ]
        own_loss = own_loss or any(step.loss == "own" for step in steps)
        points.setdefault(stage.backbone, set()).update(step.point for step in steps if step.point is not None)
        answers.append([_not_neutral(stage), [_not_neutral(step) for step in steps]])
    content = {
        "answers": answers,
        "computes": {
            backbone: {
                point: asdict(teacher_plan(compile_plan(row.model, rows.at_point(row, point).policies), backbone))
                for point in sorted(named)
            }
            for backbone, named in points.items()
        },
        "budget": {name: value for name, value in asdict(budget).items() if name != "looks"},
        **({"by stage": by_stage} if by_stage else {}),
        "data": data.fingerprint,
        "model": row.model.to_json(),
        **own_content(row, loss=own_loss),
        "from": read_by(stages, vae=vae, pretrained=pretrained),
    }
    return json_digest(content)[:32]


def read_by(stages: list[tuple[Stage, Budget]], *, vae: Path, pretrained: Mapping[str, Path]) -> dict[str, str]:
    """Hashes of the weights that a training starts from and reads."""
    names = {"vae", *(name for stage, _ in stages for name in (stage.backbone, stage.teacher))}
    return {name: file_hash(path) for name, path in {"vae": vae, **pretrained}.items() if name in names}


def _not_neutral(answer: Stage | TrainStep) -> dict[str, Any]:
    """What differs from the neutral values, so that a further field does not make another training of every old one."""
    values = {field.name: (getattr(answer, field.name), field.default) for field in fields(answer)}
    return {name: value for name, (value, neutral) in values.items() if value != neutral}
