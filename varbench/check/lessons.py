"""Promises about what is learnt from: examples that the full model makes are the same whenever they are made, and a loss of a
plugin's own is one that can be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import fields

import torch
from torch import Tensor

from varbench import rows
from varbench.check.sameness import EQUAL, SCHEDULED, scheduled
from varbench.check.subject import LABELS, GeneratorRow, PlannedRow, UnderTest
from varbench.engine.full_model import FullModel
from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import fused_attention
from varbench.experts import PlaceName, PlaceSeen
from varbench.model.transformer import Transformer
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import RowPolicies
from varbench.policies import MAIN, Stage, TaughtGenerator, TrainingSchedule, TrainStep
from varbench.train.own_numbers import put_own

FIRST = 10
"""Number of the first example that is made."""


def examples_are_their_numbers_own(subject: UnderTest) -> Iterator[str]:
    """Examples that the full model makes for a generator are whole numbers, and the same in any batch: kept ones are of use."""
    owned = subject.bench.again(subject.row).policies.generator
    if not isinstance(subject, GeneratorRow) or owned is None or not isinstance(owned.policy, TaughtGenerator):
        return
    pipe, generator = subject.bench.pipeline(subject.row), owned.policy
    teacher = FullModel(pipe.backbones[MAIN], pipe.tokenizer, dtype=torch.float32)
    generator.meet(teacher, tokenizer=pipe.tokenizer)

    def made(begin: int, end: int) -> Tensor:
        with torch.no_grad():
            return generator.made(torch.tensor(LABELS[begin:end]), range(FIRST + begin, FIRST + end))

    whole = made(0, len(LABELS))
    if whole.ndim != 2 or len(whole) != len(LABELS) or whole.is_floating_point():
        yield f"{len(LABELS)} examples are {tuple(whole.shape)} of {whole.dtype}; give ({len(LABELS)}, n) whole numbers"
        return
    same = float((torch.cat((made(0, 1), made(1, len(LABELS)))) == whole).float().mean())
    if same < EQUAL:
        yield f"made in other batches, {100 * same:.1f} % of the examples' numbers are the same; {100 * EQUAL:.1f} % must be"


def own_loss_teaches(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """A loss of the plugin's own is one finite number, the same of the same tensors, which it only looks at; and it hangs on what
    its stage trains."""
    asked: set[tuple[str | None, str | None]] = set()
    for subject in subjects:
        row, schedule = subject.row, subject.row.schedule
        if schedule is None or not isinstance(subject, PlannedRow) or (row.recipe_plugin, row.recipe) in asked:
            continue
        asked.add((row.recipe_plugin, row.recipe))
        for stage in schedule.stages():
            steps = scheduled(schedule, stage, max(1, round(SCHEDULED * stage.share)))
            for step in dict.fromkeys(step for step in steps if step.loss == "own"):
                for wrong in _one_lesson(subject, schedule, stage, step):
                    yield f"{row.name}: the own loss of {stage.name} {wrong}"


def _one_lesson(subject: PlannedRow, schedule: TrainingSchedule, stage: Stage, step: TrainStep) -> Iterator[str]:
    """What is wrong with one step's loss, shown the kit's model at work on codes of its own."""
    row = rows.at_point(subject.row, step.point, manager=subject.bench.manager)
    pipe, width = subject.pipe, subject.row.policies.width
    network = deepcopy(pipe.backbones[stage.backbone]).requires_grad_(stage.trains != "own")
    if width is not None and width.policy.own is not None and stage.backbone == MAIN:
        put_own(width, network)
    network.own.requires_grad_(stage.trains != "model")
    own, losses, wrong = network.own.tensors(), list[Tensor](), dict[str, None]()
    taught: dict[tuple[PlaceName, int], PlaceSeen] = {}

    def learn(seen: PlaceSeen) -> None:
        taught[seen.place, seen.layer] = seen

    def compare(seen: PlaceSeen) -> None:
        given = [one for seen_ in (seen, seen.taught) for one in _tensors(seen_)]
        before = [one.detach().clone() for one in given]
        with torch.enable_grad():
            made, again = schedule.own_loss(seen, own=own), schedule.own_loss(seen, own=own)
        where = f"of the {seen.place} of layer {seen.layer}"
        if not all(map(torch.equal, before, given)):
            wrong[f"{where} changed what it was shown"] = None
        if type(made) is not Tensor or made.shape != () or not torch.isfinite(made):
            wrong[f"{where} is {made}; give one finite number"] = None
        elif not torch.equal(made, again):
            wrong[f"{where} is another number when it is asked again"] = None
        else:
            losses.append(made)

    def show(model: Transformer, forward: TeacherPass, *, to: Callable[[PlaceSeen], None]) -> None:
        forward.show(
            model, pipe.tokenizer.teacher_input(codes), codes, torch.tensor(LABELS), dtype=torch.float32,
            attend=fused_attention, places=step.sees, look=to, taught=taught,
        )  # fmt: skip

    draw = torch.Generator().manual_seed(FIRST)
    model = pipe.model
    codes = torch.randint(model.tokenizer.vocabulary, (len(LABELS), model.length), generator=draw)
    if stage.teacher is not None:
        teacher = pipe.backbones[stage.teacher]
        full = TeacherPass(compile_plan(teacher.spec, RowPolicies(name=rows.FULL)), MAIN)
        with torch.no_grad():
            show(teacher, full, to=learn)
    if step.point is None:
        forward = TeacherPass(compile_plan(network.spec, RowPolicies(name=rows.FULL)), MAIN)
    else:
        plan = compile_plan(row.model, row.policies)
        forward = TeacherPass(plan, stage.backbone, row.policies.width)
    with torch.set_grad_enabled(stage.trains != "own" or step.point is not None):
        show(network, forward, to=compare)
    if not losses and not wrong:
        wrong[f"sees {step.sees}, of which nothing runs"] = None
    trained = [one for one in network.parameters() if one.requires_grad]
    if not wrong and not _hangs_on(torch.stack(losses).mean(), trained):
        wrong["hangs on nothing that the stage trains"] = None
    yield from wrong


def _tensors(seen: PlaceSeen | None) -> list[Tensor]:
    return (
        [] if seen is None else [one for field in fields(seen) if isinstance(one := getattr(seen, field.name), Tensor)]
    )


def _hangs_on(loss: Tensor, trained: Sequence[Tensor]) -> bool:
    if not loss.requires_grad:
        return False
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return any(one is not None and bool(one.any()) for one in gradients)
