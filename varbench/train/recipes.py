"""Trained weights of a row's recipe: those that ship, or from the cache where the same training was done before, else trained
now.

Both are found by what a training is made of (every answer of the schedule, what each point it names computes, the budget, the
data, the weights it starts from), so neither the row's point nor any version number matters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from varbench import rows
from varbench.base.hashing import file_hash, json_digest
from varbench.base.places import cache_folder
from varbench.base.turns import one_at_a_time
from varbench.base.whole_files import write_whole
from varbench.data.image_set import ImageSet
from varbench.engine.teacher import TeacherPass, teacher_plan
from varbench.errors import CheckpointError, UserError, did_you_mean
from varbench.model.checkpoints import build_tokenizer, load_tokenizer, load_transformer
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan
from varbench.policies import MAIN, Stage, TrainingSchedule, TrainStep
from varbench.rows.grammar import Row
from varbench.spec import ModelSpec
from varbench.train import evaluation
from varbench.train.export import export
from varbench.train.order import uniforms
from varbench.train.own_numbers import own_content, put_own
from varbench.train.progress import Progress, said_now_and_then, shown
from varbench.train.ranks import Ranks
from varbench.train.shipped import Shipped
from varbench.train.states import Checkpoints
from varbench.train.tokens import TokenSet, tokens_of
from varbench.train.trainer import DTYPES, Budget, Curriculum, HeldOut, Teacher, attention_of, train
from varbench.train.training_log import TrainingLog, log_of
from varbench.train.training_options import ByStage

Origin = Literal["shipped", "cache", "here"]


@dataclass(frozen=True, kw_only=True)
class RecipeWeights:
    """Where a row's weights are."""

    files: Mapping[str, Path]
    """By backbone; those that the recipe does not train are the pretrained ones."""
    record: Mapping[str, Any] | None
    """How they were trained, as the file beside them has it; None where the pretrained weights are used as they are."""
    origin: Origin | None
    note: str | None = None
    """Why weights that ship for the recipe were not used, where they should have been."""

    @property
    def log(self) -> TrainingLog | None:
        return None if self.record is None or self.origin is None else log_of(self.record, origin=self.origin)


def recipe_weights(
    row: Row,
    *,
    vae: Path,
    pretrained: Mapping[str, Path],
    data: ImageSet,
    budget: Budget,
    shipped: Shipped | None = None,
    device: str = "cpu",
    events: Path | None = None,
    ranks: Ranks | None = None,
    by_stage: ByStage | None = None,
) -> RecipeWeights:
    """The weights of the row's recipe, trained from `pretrained` (by backbone) if they neither ship nor are in the cache.

    `budget.steps` are the optimiser steps of all stages together; in the rest a stage may differ, `by_stage`. Of several `ranks`,
    which see the same files, the first alone writes.
    """
    ranks = ranks or Ranks()
    if row.schedule is None:
        return RecipeWeights(files=dict(pretrained), record=None, origin=None)
    if row.policies.transforms:
        replacing = " and ".join(dict.fromkeys(owned.part for owned in row.policies.transforms))
        raise UserError(
            f"{row.name}: {replacing} replaces modules once weights are loaded, and only plain weights are trained; train "
            "the row without it, whose weights it then runs on"
        )
    ready, note = _shipped(row, shipped, vae=vae, pretrained=pretrained, data=data)
    if ready is not None:
        return ready
    row.schedule.check(budget.steps)
    tokenizer_spec, state = load_tokenizer(vae)
    if tokenizer_spec != row.model.tokenizer:
        raise CheckpointError(f"{vae} holds {tokenizer_spec}, and {row.model.name} speaks {row.model.tokenizer}.")
    tokenizer = build_tokenizer(row.model, state, vae).to(device)
    stages = _stages(row.schedule, budget, by_stage)
    _check_backbones(row, stages, pretrained)
    key = _key(row, budget, vae=vae, pretrained=pretrained, data=data, by_stage=by_stage)
    folder = cache_folder("weights") / key
    names = {stage.backbone for stage, _ in stages}
    files = {**pretrained, **{name: folder / f"{name}.safetensors" for name in names}}
    record_path = folder / presets.RECORD

    def in_cache() -> RecipeWeights | None:
        found = cached(folder, names, pretrained)
        return None if found is None else replace(found, note=note)

    def in_cache_by_now() -> RecipeWeights:
        found = in_cache()
        assert found is not None, "the first process has seen it there"
        return found

    found = in_cache()
    if ranks.agreed(found is not None):
        return found or in_cache_by_now()
    waiting = said_now_and_then(f"{row.recipe_name} is being trained by another process; waiting for it")
    with ranks.alone(one_at_a_time(folder / "lock", while_waiting=waiting)):
        found = in_cache()
        if ranks.agreed(found is not None):
            return found or in_cache_by_now()
        indices = data.training[: budget.images_seen]
        with shown(f"tokens of {data.name}", steps=len(indices), quiet=ranks.rank > 0) as progress:
            tokens = tokens_of(data, tokenizer, model=row.model, indices=indices, progress=progress)
        trained = {name: load_transformer(path, tokenizer_spec).to(device) for name, path in pretrained.items()}
        if row.policies.width is not None:
            put_own(row.policies.width, trained[MAIN])
        record: dict[str, Any] = {
            "row": row.recipe_name,
            "key": key,
            "model": row.model.name,
            "data": data.fingerprint,
            "from": _read_by(stages, vae=vae, pretrained=pretrained),
            "stages": {},
        }
        for stage, stage_budget in stages:
            title = f"{row.recipe_name} {stage.name}" if len(stages) > 1 else row.recipe_name
            with shown(
                title,
                steps=stage_budget.steps,
                batch=budget.batch,
                events=events and events / stage.name,
                quiet=ranks.rank > 0,
            ) as progress:
                record["stages"][stage.name] = _train_stage(
                    row,
                    stage,
                    trained=trained,
                    pretrained=pretrained,
                    tokenizer=tokenizer,
                    tokens=tokens,
                    data=data,
                    budget=stage_budget,
                    checkpoints=Checkpoints(folder / f"{stage.name}.state"),
                    progress=progress,
                    ranks=ranks,
                )
            if ranks.rank > 0:
                continue
            transformer, whole = trained[stage.backbone], {**record, "backbone": stage.backbone}
            export(transformer, files[stage.backbone], spec=transformer.spec, record=whole)
        # Written last: its presence says that the weights beside it are complete.
        if ranks.rank == 0:
            write_whole(record_path, json.dumps(record, indent=1).encode())
            for stage, _ in stages:
                (folder / f"{stage.name}.state").unlink(missing_ok=True)
    return RecipeWeights(files=files, record=record, origin="here", note=note)


def weights_ahead(
    row: Row,
    *,
    vae: Path,
    pretrained: Mapping[str, Path],
    data: ImageSet,
    budget: Budget,
    shipped: Shipped | None = None,
) -> RecipeWeights | None:
    """What `recipe_weights` would find and not train; None where it would have to train."""
    assert row.schedule is not None
    ready, _ = _shipped(row, shipped, vae=vae, pretrained=pretrained, data=data)
    if ready is not None:
        return ready
    key = _key(row, budget, vae=vae, pretrained=pretrained, data=data)
    names = {stage.backbone for stage, _ in _stages(row.schedule, budget)}
    return cached(cache_folder("weights") / key, names, pretrained)


def shipped_weights(
    shipped: Shipped | None, name: str, *, key: Callable[[Shipped], str], pretrained: Mapping[str, Path]
) -> tuple[RecipeWeights | None, str | None]:
    """The weights that ship under this name, where their training has this key; else why those that do may not be used."""
    told = None if shipped is None else shipped.record_of(name)
    if shipped is None or told is None:
        return None, None
    if (wrong := shipped.wrong(name, told, key=key(shipped))) is not None:
        return None, wrong
    ready = {**pretrained, **shipped.files_of(name, told)}
    return RecipeWeights(files=ready, record=told, origin="shipped"), None


def _shipped(
    row: Row, shipped: Shipped | None, *, vae: Path, pretrained: Mapping[str, Path], data: ImageSet
) -> tuple[RecipeWeights | None, str | None]:
    def key(those: Shipped) -> str:
        return _key(row, those.budget, vae=vae, pretrained=pretrained, data=data)

    return shipped_weights(shipped, row.recipe_name, key=key, pretrained=pretrained)


def cached(folder: Path, names: set[str], pretrained: Mapping[str, Path]) -> RecipeWeights | None:
    """What was trained here before and lies in this folder; None where it is not there whole."""
    files = {name: folder / f"{name}.safetensors" for name in names}
    told = folder / presets.RECORD
    if not (told.is_file() and all(path.is_file() for path in files.values())):
        return None
    return RecipeWeights(files={**pretrained, **files}, record=json.loads(told.read_text()), origin="cache")


def full_plan(model: ModelSpec) -> Plan:
    return compile_plan(model, RowPolicies(name=rows.FULL))


def full_curriculum(model: ModelSpec, *, name: str) -> Curriculum:
    """Every step trains the full model."""
    plan = full_plan(model)
    return Curriculum(at=lambda step, uniform: TrainStep(), plan_of=lambda point: (plan, MAIN), name=name)


def _train_stage(
    row: Row,
    stage: Stage,
    *,
    trained: Mapping[str, Transformer],
    pretrained: Mapping[str, Path],
    tokenizer: Tokenizer,
    tokens: TokenSet,
    data: ImageSet,
    budget: Budget,
    checkpoints: Checkpoints,
    progress: Progress,
    ranks: Ranks,
) -> dict[str, Any]:
    assert row.schedule is not None
    transformer = trained[stage.backbone]
    teacher = None
    if stage.teacher is not None:
        device = transformer.pos_1LC.device
        frozen = load_transformer(pretrained[stage.teacher], row.model.tokenizer).to(device)
        teacher = Teacher(transformer=frozen, plan=full_plan(frozen.spec))
    return train(
        transformer,
        tokenizer=tokenizer,
        tokens=tokens,
        curriculum=Curriculum(
            at=_answers(row.schedule, stage, budget),
            plan_of=partial(_plan_of, row, stage, transformer.spec),
            name=f"{row.recipe_name} {stage.name}",
            width_of=lambda point: None if point is None else rows.at_point(row, point).policies.width,
            trains=stage.trains,
            own_loss=partial(row.schedule.own_loss, own=transformer.own.tensors()),
        ),
        budget=budget,
        checkpoints=checkpoints,
        progress=progress,
        teacher=teacher,
        evaluation=_evaluation(
            row, stage, tokenizer=tokenizer, data=data, budget=budget, device=transformer.pos_1LC.device
        ),
        identity={"from": file_hash(pretrained[stage.backbone])},
        ranks=ranks,
    )


def _evaluation(
    row: Row, stage: Stage, *, tokenizer: Tokenizer, data: ImageSet, budget: Budget, device: torch.device
) -> HeldOut[Transformer] | None:
    """Looks at the main model and its subnets; what runs on two models has no loss of one of them."""
    images = data.validation[: evaluation.IMAGES]
    if stage.backbone != MAIN or not images or not budget.looks:
        return None
    passes = {"full": TeacherPass(full := full_plan(row.model), MAIN)}
    for point, other in rows.at_default_points(row).items():
        plan = compile_plan(row.model, other.policies)
        if [name for name, _ in plan.backbones] == [MAIN] and plan.steps != full.steps:
            passes[point] = TeacherPass(plan, MAIN, other.policies.width)
    return HeldOut(
        steps=frozenset(round(budget.steps * look / budget.looks) for look in range(budget.looks + 1)),
        figures=partial(
            evaluation.held_out_losses,
            passes=passes,
            tokenizer=tokenizer,
            tokens=tokens_of(data, tokenizer, model=row.model, indices=images),
            dtype=DTYPES[budget.dtype],
            attend=attention_of(device),
        ),
    )


def _plan_of(row: Row, stage: Stage, own: ModelSpec, point: str | None) -> tuple[Plan, str]:
    if point is None:
        return full_plan(own), MAIN
    return compile_plan(row.model, rows.at_point(row, point).policies), stage.backbone


def _answers(
    schedule: TrainingSchedule, stage: Stage, budget: Budget
) -> Callable[[int, Callable[[int], float]], TrainStep]:
    return lambda step, uniform: schedule.at(stage, step, budget.steps, uniform)


def _stages(schedule: TrainingSchedule, budget: Budget, by_stage: ByStage | None = None) -> list[tuple[Stage, Budget]]:
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


def _check_backbones(row: Row, stages: list[tuple[Stage, Budget]], pretrained: Mapping[str, Path]) -> None:
    for stage, _ in stages:
        for name in filter(None, (stage.backbone, stage.teacher)):
            if name not in pretrained:
                raise UserError(
                    f"{row.name}: its stage {stage.name!r} needs pretrained weights of {name!r}, and there are only "
                    f"{', '.join(sorted(pretrained))}. Train or give them first."
                )


def _key(
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
    answers = []
    stages = _stages(row.schedule, budget)
    for stage, part in stages:
        steps = [
            row.schedule.at(stage, step, part.steps, uniforms(seed=budget.seed, step=step))
            for step in range(part.steps)
        ]
        points.setdefault(stage.backbone, set()).update(step.point for step in steps if step.point is not None)
        answers.append([_said(stage), [_said(step) for step in steps]])
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
        **own_content(row),
        "from": _read_by(stages, vae=vae, pretrained=pretrained),
    }
    return json_digest(content)[:32]


def _read_by(stages: list[tuple[Stage, Budget]], *, vae: Path, pretrained: Mapping[str, Path]) -> dict[str, str]:
    """Hashes of the weights that a training starts from and reads."""
    names = {"vae", *(name for stage, _ in stages for name in (stage.backbone, stage.teacher))}
    return {name: file_hash(path) for name, path in {"vae": vae, **pretrained}.items() if name in names}


def _said(answer: Stage | TrainStep) -> dict[str, Any]:
    """What differs from the neutral values, so that a further field does not make another training of every old one."""
    said = {field.name: (getattr(answer, field.name), field.default) for field in fields(answer)}
    return {name: value for name, (value, neutral) in said.items() if value != neutral}
