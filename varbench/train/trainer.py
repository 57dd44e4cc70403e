"""The trainer: teacher-forced steps that compute only what a plan computes, whoever made the plan.

Letters: B images, L tokens of all scales, n tokens of the scales that are trained, V codes, D code_dim.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from varbench.base.hashing import json_digest
from varbench.base.whole_files import require_space
from varbench.errors import UserError
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.policies import TrainStep
from varbench.train.curriculum import Curriculum, Passes, Teacher
from varbench.train.optimiser import RunningMean, adamw, divergence, rate_at, take_step
from varbench.train.order import batch_rows, class_drops, uniforms
from varbench.train.progress import Progress
from varbench.train.ranks import Loss, Ranks, Share
from varbench.train.state_parts import Numbers, delete, folder_of, latest, load_parts, save_parts
from varbench.train.states import Checkpoints, check_same, ctrl_c_waits, load_state, save_state
from varbench.train.step_graphs import Given, Replayable, StepGraphs, stream_of, worth_capturing
from varbench.train.tokens import TokenSet

Network = TypeVar("Network", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how a transformer is trained; the same for every schedule that is compared."""

    steps: int
    peak_rate: float
    seed: int = 0
    batch: int = 64
    images: int = 60_000
    """Distinct training images of a data set without an end, else all that it has. A short training takes as many as it sees;
    once all were seen, they come again in another order."""
    warm_up: float = 0.03
    """Share of the steps over which the learning rate rises."""
    floor: float = 0.02
    """Share of the peak rate that is left at the end."""
    weight_decay: float = 0.05
    class_drop: float = 0.1
    mean_decay: float = 0.999
    dtype: str = "bfloat16"
    looks: int = 4
    """How often a recipe's weights are looked at on held-out images, evenly over the steps, beside the look before the first;
    0 is never, and not before the first either."""

    @property
    def images_seen(self) -> int:
        """How many distinct images the steps see."""
        return min(self.images, self.steps * self.batch)

    @property
    def warm_up_steps(self) -> int:
        return max(1, round(self.warm_up * self.steps))


@dataclass(frozen=True, kw_only=True)
class HeldOut(Generic[Network]):
    """A look at the mean weights while they train."""

    steps: frozenset[int]
    """After which steps; 0 is before the first."""
    figures: Callable[[Network], list[dict[str, Any]]]


def train(
    transformer: Transformer,
    *,
    tokenizer: Tokenizer,
    tokens: TokenSet,
    curriculum: Curriculum,
    budget: Budget,
    checkpoints: Checkpoints,
    progress: Progress,
    teacher: Teacher | None = None,
    identity: dict[str, Any] | None = None,
    on_checkpoint: Callable[[int], None] | None = None,
    evaluation: HeldOut[Transformer] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train a transformer as `optimise` does, by a curriculum, on tokens of all scales; the record of how it went."""
    transformer.requires_grad_(curriculum.trains != "own")
    _freeze_all_but(curriculum.parts, transformer, curriculum.name)
    transformer.own.requires_grad_(curriculum.trains != "model")
    device = transformer.pos_1LC.device
    recompute = ranks is not None and ranks.recompute
    passes = Passes(curriculum, teacher, device=device, dtype=DTYPES[budget.dtype], recompute=recompute)

    def given(step: int, share: Share) -> Given:
        wanted = curriculum.at(step, uniforms(seed=budget.seed, step=step))
        inputs = _batch(tokens, budget, step, classes=transformer.spec.classes, share=share)
        return Given(kind=wanted, trained=wanted.point or "full", inputs=inputs)

    def loss_of(wanted: TrainStep, tokens_BL: Tensor, labels_B: Tensor) -> Tensor:
        with torch.no_grad():
            features_BLD = tokenizer.teacher_input(tokens_BL)
        return passes.loss(transformer, wanted, features_BLD, tokens_BL, labels_B)

    def loss(step: int, share: Share) -> tuple[str, Tensor]:
        one = given(step, share)
        return one.trained, loss_of(one.kind, *(numbers.to(device) for numbers in one.inputs))

    return optimise(
        transformer,
        loss=loss,
        replayable=Replayable(given=given, loss=loss_of, follows=passes.follow),
        name=curriculum.name,
        budget=budget,
        checkpoints=checkpoints,
        progress=progress,
        identity={"model": transformer.spec.to_json(), "tokens": tokens.key, **(identity or {})},
        on_checkpoint=on_checkpoint,
        evaluation=evaluation,
        ranks=ranks,
    )


def optimise(
    module: Network,
    *,
    loss: Loss,
    replayable: Replayable | None = None,
    name: str,
    budget: Budget,
    checkpoints: Checkpoints,
    progress: Progress,
    identity: dict[str, Any],
    on_checkpoint: Callable[[int], None] | None = None,
    evaluation: HeldOut[Network] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train in place and leave the mean weights in `module`; the record of how it went.

    Killed at any moment and called again with the same arguments, it goes on from the last checkpoint to the same weights
    that it would have reached without the interruption; after Ctrl-C, from the step it was at. `on_checkpoint` runs
    after each checkpoint with the mean weights in place, and so does `evaluation`, whose seconds are not counted as
    training. Of several `ranks`, each writes a share of a checkpoint, and the first alone what is written beside; all of
    them end with the same weights. A training that diverges is ended, and leaves no checkpoint, which would only lead
    there again.
    """
    module.train()
    ranks = ranks or Ranks()
    ranks.check(budget.batch)
    device = next(module.parameters()).device
    optimizer = adamw(module, weight_decay=budget.weight_decay)
    mean = RunningMean(module, decay=budget.mean_decay)
    weight_bytes = sum(parameter.nbytes for parameter in module.parameters())
    require_space(checkpoints.path.parent, needed=8 * weight_bytes, purpose=f"the checkpoint of {name}")
    # The optimiser's state and the mean go by the parameters' order.
    shapes = [[key, list(parameter.shape)] for key, parameter in module.named_parameters()]
    identity = {"curriculum": name, "budget": asdict(budget), "parameters": json_digest(shapes)[:12], **identity}
    numbers = Numbers(module, optimizer, mean)
    begin, seconds, counts = 0, 0.0, dict[str, int]()
    losses: dict[str, list[list[float]]] = {}  # by point, pairs of step and loss
    evaluations: list[dict[str, Any]] = []
    if state := _resumed(checkpoints.path, numbers, identity=identity, ranks=ranks):
        begin, seconds, counts = state["step"], state["seconds"], state["counts"]
        losses, evaluations = state["losses"], state["evaluations"]

    def evaluate(step: int) -> float:
        began = time.perf_counter()
        if evaluation is not None and step in evaluation.steps and step not in (one["step"] for one in evaluations):
            mean.swap()
            evaluations.extend({"step": step, **figures} for figures in evaluation.figures(module))
            mean.swap()
        return time.perf_counter() - began

    evaluate(begin)
    started = time.perf_counter()

    def save(step: int) -> None:
        told = {
            "identity": identity,
            "step": step,
            "seconds": seconds + time.perf_counter() - started,
            "counts": counts,
            "losses": losses,
            "evaluations": evaluations,
        }
        checkpoints.written(
            partial(_write, checkpoints.path, numbers, told, ranks=ranks), also=partial(export_mean, step)
        )

    def export_mean(step: int) -> None:
        if on_checkpoint is not None and step < budget.steps and ranks.rank == 0:
            mean.swap()
            on_checkpoint(step)
            mean.swap()

    backward = ranks.backward(module, loss)

    def stepped(step: int, rate: float) -> tuple[str, float, float]:
        trained, value = backward(step)
        return trained, value, take_step(optimizer, module.parameters(), rate=rate)

    graphs = None
    if replayable is not None and worth_capturing(module, ranks):
        graphs = StepGraphs(replayable, module, optimizer)
    take = stepped if graphs is None else graphs.step
    # Ranks step together, so none of them may finish a step that another has left.
    waits = ctrl_c_waits() if ranks.count == 1 else nullcontext(lambda: False)
    with stream_of(graphs), waits as interrupted:
        for step in range(begin, budget.steps):
            rate = rate_at(
                step, steps=budget.steps, peak=budget.peak_rate, warm_up=budget.warm_up_steps, floor=budget.floor
            )
            trained, value, gradient = take(step, rate)
            if diverged := divergence(step, steps=budget.steps, peak=budget.peak_rate, loss=value, gradient=gradient):
                delete(checkpoints.path)
                raise UserError(f"{name}: {diverged}")
            mean.update(step)
            counts[trained] = counts.get(trained, 0) + 1
            losses.setdefault(trained, []).append([step + 1, round(value, 4)])
            progress(step + 1, {f"loss {trained}": value})
            started += evaluate(step + 1)
            if ranks.first_says(checkpoints.due() or interrupted() or step + 1 == budget.steps):
                save(step + 1)
            if interrupted():
                raise KeyboardInterrupt
    seconds += time.perf_counter() - started

    mean.swap()
    module.requires_grad_(False).eval()
    return {
        "curriculum": name,
        **asdict(budget),
        "steps_by_point": counts,
        "losses": losses,
        "evaluations": evaluations,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }


def _freeze_all_but(parts: Sequence[str], transformer: Transformer, name: str) -> None:
    """Those whose name no pattern fits; without patterns none."""
    for pattern in parts:
        if not any(fnmatchcase(known, pattern) for known, _ in transformer.named_parameters()):
            known = ", ".join(sorted({known for known, _ in transformer.named_parameters()})[:6])
            raise UserError(f"{name}: no weight has a name like {pattern!r}; there are {known} and others")
    for known, parameter in transformer.named_parameters() if parts else ():
        parameter.requires_grad_(parameter.requires_grad and any(fnmatchcase(known, pattern) for pattern in parts))


def _write(path: Path, numbers: Numbers, told: dict[str, Any], *, ranks: Ranks) -> None:
    if ranks.count > 1:
        save_parts(path, numbers, told, ranks=ranks)
    else:
        save_state(path, {**told, **numbers.state()})
        shutil.rmtree(folder_of(path), ignore_errors=True)


def _resumed(path: Path, numbers: Numbers, *, identity: dict[str, Any], ranks: Ranks) -> dict[str, Any] | None:
    """What was told of the last state, once its numbers are in place; whoever wrote it, one process or several."""
    parts = latest(path)
    told = load_state(path, identity=identity) if parts is None else parts[1]
    if parts is not None:
        check_same(parts[1], parts[0], identity=json.loads(json.dumps(identity)))
    step = 0 if told is None else told["step"]
    ranks.check_alike(f"step {step} of the training {json_digest(identity)[:8]}", where=path)
    if parts is not None:
        load_parts(parts[0], numbers, ranks=ranks)
    elif told is not None:
        numbers.load(told)
    return told


def _batch(tokens: TokenSet, budget: Budget, step: int, *, classes: int, share: Share) -> tuple[Tensor, Tensor]:
    """Tokens and labels of a share of a step's batch; a dropped label is `classes`."""
    rows = batch_rows(seed=budget.seed, step=step, batch=budget.batch, count=len(tokens))
    drops = class_drops(seed=budget.seed, step=step, batch=budget.batch, probability=budget.class_drop)
    rows, drops = share.rows(rows), share.rows(drops)
    tokens_BL = torch.from_numpy(tokens.tokens_NL[rows].astype(np.int64))
    return tokens_BL, torch.from_numpy(np.where(drops, classes, tokens.labels_N[rows]))
