"""Trained weights of a row's recipe: those that ship, or from the cache where the same training was done before, else trained
now.

Both are found by what a training is made of (every answer of the schedule, what each point it names computes, the budget, the
data, the weights it starts from), so neither the row's point nor any version number matters, nor what a method without numbers
or a loss of its own is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from varbench import rows
from varbench.base.display import Display, shown, unseen
from varbench.base.hashing import file_hash
from varbench.base.places import cache_folder
from varbench.base.turns import one_at_a_time
from varbench.base.whole_files import write_whole
from varbench.data.image_set import ImageSet
from varbench.engine.teacher import TeacherPass
from varbench.errors import CheckpointError, UserError
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
from varbench.train.curriculum import Curriculum, Teacher, attention_of
from varbench.train.export import export
from varbench.train.own_numbers import put_own
from varbench.train.progress import TOKENS, TRAINING, Progress, Sizes, followed
from varbench.train.ranks import Ranks
from varbench.train.recipe_key import budgets_of, read_by, recipe_key
from varbench.train.shipped import Shipped, not_what_shipped
from varbench.train.state_parts import delete
from varbench.train.states import Checkpoints, another_state
from varbench.train.tokens import TokenSet, tokens_of
from varbench.train.trainer import DTYPES, Budget, HeldOut, train
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
    begins: Callable[[], None] = lambda: None,
    display: Display | None = None,
) -> RecipeWeights:
    """The weights of the row's recipe, trained from `pretrained` (by backbone) if they neither ship nor are in the cache.

    `budget.steps` are the optimiser steps of all stages together; in the rest a stage may differ, `by_stage`. Of several `ranks`,
    which see the same files, the first alone writes. `begins` is called if it is trained now, before that.
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
    if shipped is not None:
        row.schedule.check(shipped.budget.steps)
    ready, note = _shipped(row, shipped, vae=vae, pretrained=pretrained, data=data)
    if ready is not None:
        return ready
    row.schedule.check(budget.steps)
    tokenizer_spec, state = load_tokenizer(vae)
    if tokenizer_spec != row.model.tokenizer:
        raise CheckpointError(f"{vae} holds {tokenizer_spec}, and {row.model.name} speaks {row.model.tokenizer}.")
    tokenizer = build_tokenizer(row.model, state, vae).to(device)
    stages = budgets_of(row.schedule, budget, by_stage)
    _check_backbones(row, stages, pretrained)
    key = recipe_key(row, budget, vae=vae, pretrained=pretrained, data=data, by_stage=by_stage)
    folder = cache_folder("weights") / key
    names = {stage.backbone for stage, _ in stages}
    files = {**pretrained, **{name: folder / f"{name}.safetensors" for name in names}}
    record_path = folder / presets.RECORD

    def in_cache() -> RecipeWeights | None:
        found = cached(folder, names, pretrained)
        ranks.check_alike("trained weights" if found else "none", where=folder)
        return None if found is None else replace(found, note=note)

    if ranks.count == 1 and (found := in_cache()):
        return found
    display = display or unseen()
    waiting = display.waiting(f"{row.recipe_name} is being trained by another process; waiting for it")
    with ranks.alone(one_at_a_time(folder / "lock", while_waiting=waiting)):
        if found := in_cache():
            return found
        begins()
        if ranks.rank == 0 and (difference := _another(folder, row, *stages[0])):
            display.note(f"{row.recipe_name}: {difference}")
        indices = data.training[: budget.images_seen]
        tokens = tokens_of(data, tokenizer, model=row.model, indices=indices, display=display)
        trained = {name: load_transformer(path, tokenizer_spec).to(device) for name, path in pretrained.items()}
        if row.policies.width is not None:
            put_own(row.policies.width, trained[MAIN])
        record: dict[str, Any] = {
            "row": row.recipe_name,
            "key": key,
            "model": row.model.name,
            "data": data.fingerprint,
            "from": read_by(stages, vae=vae, pretrained=pretrained),
            "stages": {},
        }
        for stage, stage_budget in stages:
            title = _name(row, stage) if len(stages) > 1 else row.recipe_name
            with followed(
                display,
                TRAINING,
                title,
                steps=stage_budget.steps,
                batch=budget.batch,
                events=events / stage.name if events and ranks.rank == 0 else None,
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
                    checkpoints=Checkpoints(_state(folder, stage)),
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
                delete(_state(folder, stage))
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
    key = recipe_key(row, budget, vae=vae, pretrained=pretrained, data=data)
    names = {stage.backbone for stage, _ in budgets_of(row.schedule, budget)}
    return cached(cache_folder("weights") / key, names, pretrained)


def recipe_parts(row: Row, budget: Budget, by_stage: ByStage | None = None) -> Sizes:
    """What the live display counts of the training."""
    stages = [] if row.schedule is None else budgets_of(row.schedule, budget, by_stage)
    return {TOKENS: [budget.images_seen], TRAINING: [stage.steps for _, stage in stages]}


def in_one_display(
    rows: Collection[Row],
    weights: Callable[[Row, Display], RecipeWeights],
    *,
    parts: Callable[[Row], Sizes],
    quiet: bool = False,
) -> list[tuple[Row, RecipeWeights]]:
    """Trains one row after the other, and shows how far all of them are."""
    counted = {row.name: parts(row) for row in rows}
    kinds: dict[str, list[float]] = {}
    for kind, sizes in chain.from_iterable(one.items() for one in counted.values()):
        kinds.setdefault(kind, []).extend(sizes)
    found = []
    with shown(kinds, quiet=quiet) as display:
        for row in rows:
            found.append((row, done := weights(row, display)))
            for kind, sizes in counted[row.name].items() if done.origin != "here" else ():
                for size in sizes:
                    display.spare(kind, size)
    return found


def shipped_weights(
    shipped: Shipped | None, name: str, *, key: Callable[[Shipped], str], pretrained: Mapping[str, Path]
) -> tuple[RecipeWeights | None, str | None]:
    """The weights that ship and whose training has this key; else why those of this name may not be used, where some are."""
    if shipped is None:
        return None, None
    if (found := shipped.of_key(key(shipped))) is None:
        return None, shipped.of_another_training(name)
    files, told = found
    if (wrong := not_what_shipped(files, told)) is not None:
        return None, wrong
    return RecipeWeights(files={**pretrained, **files}, record=told, origin="shipped"), None


def _shipped(
    row: Row, shipped: Shipped | None, *, vae: Path, pretrained: Mapping[str, Path], data: ImageSet
) -> tuple[RecipeWeights | None, str | None]:
    def key(those: Shipped) -> str:
        return recipe_key(row, those.budget, vae=vae, pretrained=pretrained, data=data)

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


def _name(row: Row, stage: Stage) -> str:
    return f"{row.recipe_name} {stage.name}"


def _state(folder: Path, stage: Stage) -> Path:
    return folder / f"{stage.name}.state"


def _another(folder: Path, row: Row, stage: Stage, budget: Budget) -> str | None:
    return another_state(_state(folder, stage), curriculum=_name(row, stage), budget=asdict(budget))


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
            name=_name(row, stage),
            width_of=lambda point: None if point is None else rows.at_point(row, point).policies.width,
            trains=stage.trains,
            parts=stage.parts,
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


def _check_backbones(row: Row, stages: list[tuple[Stage, Budget]], pretrained: Mapping[str, Path]) -> None:
    for stage, _ in stages:
        for name in filter(None, (stage.backbone, stage.teacher)):
            if name not in pretrained:
                raise UserError(
                    f"{row.name}: its stage {stage.name!r} needs pretrained weights of {name!r}, and there are only "
                    f"{', '.join(sorted(pretrained))}. Train or give them first."
                )
