"""The trainer: teacher-forced steps that compute only what a plan computes, whoever made the plan.

Letters: B images, L tokens of all scales, n tokens of the scales that are trained, V codes, D code_dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varbench.base.hashing import json_digest
from varbench.base.whole_files import require_space
from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import Attend, explicit_attention, fused_attention
from varbench.errors import UserError
from varbench.experts import PlaceName, PlaceSeen, WidthPolicy
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.plan.owned import Owned
from varbench.plan.steps import Plan
from varbench.policies import MAIN, TrainStep
from varbench.spec import ModelSpec
from varbench.train.optimiser import RunningMean, adamw, divergence, rate_at, restore, take_step
from varbench.train.order import batch_rows, class_drops, uniforms
from varbench.train.progress import Progress
from varbench.train.ranks import Loss, Ranks, Share
from varbench.train.states import Checkpoints, ctrl_c_waits, load_state
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
class Teacher:
    """A frozen transformer that gives soft targets, and the plan that runs it as `main`."""

    transformer: Transformer
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What each step trains: the schedule's answers, and the plan of every point they name."""

    at: Callable[[int, Callable[[int], float]], TrainStep]
    """Step number and the step's random numbers to what it trains."""
    plan_of: Callable[[str | None], tuple[Plan, str]]
    """The plan of a point, and which of its backbones is trained; None is the full model."""
    name: str
    width_of: Callable[[str | None], Owned[WidthPolicy] | None] = lambda point: None
    """What chooses parts of FFNs at a point."""
    trains: Literal["model", "own", "both"] = "model"
    own_loss: Callable[[PlaceSeen], Tensor] | None = None
    """Of one place, for steps whose loss is a plugin's own."""


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
    transformer.own.requires_grad_(curriculum.trains != "model")
    device = transformer.pos_1LC.device
    recompute = ranks is not None and ranks.recompute
    passes = _Passes(curriculum, teacher, device=device, dtype=DTYPES[budget.dtype], recompute=recompute)

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
    training. Of several `ranks`, the first alone writes; all of them end with the same weights. A training that diverges
    is ended, and leaves no checkpoint, which would only lead there again.
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
    begin, seconds, counts = 0, 0.0, dict[str, int]()
    losses: dict[str, list[list[float]]] = {}  # by point, pairs of step and loss
    evaluations: list[dict[str, Any]] = []
    if state := load_state(checkpoints.path, identity=identity):
        begin, seconds, counts = state["step"], state["seconds"], state["counts"]
        module.load_state_dict(state["module"])
        restore(optimizer, state["optimizer"])
        mean.load(state["mean"])
        losses, evaluations = state["losses"], state["evaluations"]
    ranks.check_alike(f"step {begin} of the training {json_digest(identity)[:8]}", where=checkpoints.path)

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
        state = {
            "identity": identity,
            "step": step,
            "seconds": seconds + time.perf_counter() - started,
            "counts": counts,
            "losses": losses,
            "evaluations": evaluations,
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "mean": mean.state(),
        }
        checkpoints.save(state, also=partial(export_mean, step))

    def export_mean(step: int) -> None:
        if on_checkpoint is not None and step < budget.steps:
            mean.swap()
            on_checkpoint(step)
            mean.swap()

    backward = ranks.backward(module, loss)

    def stepped(step: int, rate: float) -> tuple[str, float, float]:
        trained, value = backward(step)
        return trained, value, take_step(optimizer, module.parameters(), rate=rate)

    captures = replayable is not None and worth_capturing(module, ranks)
    graphs = StepGraphs(replayable, module, optimizer) if replayable is not None and captures else None
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
                checkpoints.path.unlink(missing_ok=True)
                raise UserError(f"{name}: {diverged}")
            mean.update(step)
            counts[trained] = counts.get(trained, 0) + 1
            losses.setdefault(trained, []).append([step + 1, round(value, 4)])
            progress(step + 1, {f"loss {trained}": value})
            started += evaluate(step + 1)
            if ranks.rank == 0 and (checkpoints.due() or interrupted() or step + 1 == budget.steps):
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


def _batch(tokens: TokenSet, budget: Budget, step: int, *, classes: int, share: Share) -> tuple[Tensor, Tensor]:
    """Tokens and labels of a share of a step's batch; a dropped label is `classes`."""
    rows = batch_rows(seed=budget.seed, step=step, batch=budget.batch, count=len(tokens))
    drops = class_drops(seed=budget.seed, step=step, batch=budget.batch, probability=budget.class_drop)
    rows, drops = share.rows(rows), share.rows(drops)
    tokens_BL = torch.from_numpy(tokens.tokens_NL[rows].astype(np.int64))
    return tokens_BL, torch.from_numpy(np.where(drops, classes, tokens.labels_N[rows]))


def attention_of(device: torch.device) -> Attend:
    return explicit_attention if device.type == "cpu" else fused_attention


class _Passes:
    """Compiled passes of the plans that a curriculum names, each made when it is first trained."""

    def __init__(
        self,
        curriculum: Curriculum,
        teacher: Teacher | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        recompute: bool = False,
    ) -> None:
        self._curriculum, self._teacher, self._dtype, self._recompute = curriculum, teacher, dtype, recompute
        self._device, self._attend = device, attention_of(device)
        self._known_places: dict[tuple[tuple[int, ...], tuple[float, ...]], tuple[Tensor, Tensor]] = {}
        self._known: dict[tuple[str | None, int], TeacherPass] = {}
        self._teacher_pass = None if teacher is None else TeacherPass(teacher.plan, MAIN)

    def loss(
        self, transformer: Transformer, wanted: TrainStep, features_BLD: Tensor, tokens_BL: Tensor, labels_B: Tensor
    ) -> Tensor:
        if wanted.loss == "own":
            return self._own_loss(transformer, wanted, features_BLD, tokens_BL, labels_B)
        weights = wanted.scale_weights or (1.0,) * transformer.spec.scales
        scales = _run_to(weights)
        forward = self._pass(wanted.point, scales)
        run = forward.plan.sampled
        logits_BnV = forward.logits(transformer, features_BLD, labels_B, dtype=self._dtype, attend=self._attend)
        places_n, weight_n = self._places(transformer.spec, run, weights)
        if wanted.loss == "kl":
            target_BnV = self._soft_targets(features_BLD, labels_B, run)
            each_Bn = F.kl_div(logits_BnV.log_softmax(-1), target_BnV, reduction="none", log_target=True).sum(-1)
        else:
            # In rows of codes, as they lie: along any other axis the softmax costs three times as much.
            wanted_N = tokens_BL[:, places_n].flatten()
            each_Bn = F.cross_entropy(logits_BnV.flatten(0, 1), wanted_N, reduction="none").view(len(tokens_BL), -1)
        return (each_Bn * weight_n).sum() / (weight_n.sum() * len(each_Bn))

    def _own_loss(self, transformer: Transformer, wanted: TrainStep, *batch: Tensor) -> Tensor:
        """The mean over all that it sees. A frozen full model has nothing to differentiate."""
        given = self._curriculum.own_loss
        assert given is not None
        losses: list[Tensor] = []
        taught: dict[tuple[PlaceName, int], PlaceSeen] = {}

        def look(seen: PlaceSeen) -> None:
            with torch.enable_grad():
                losses.append(given(seen))

        def learn(seen: PlaceSeen) -> None:
            taught[seen.place, seen.layer] = seen

        def show(forward: TeacherPass, model: Transformer, look: Callable[[PlaceSeen], None]) -> None:
            forward.show(
                model, *batch, dtype=self._dtype, attend=self._attend, places=wanted.sees, look=look, taught=taught
            )

        if self._teacher is not None and self._teacher_pass is not None:
            with torch.no_grad():
                show(self._teacher_pass, self._teacher.transformer, learn)
        forward = self._pass(wanted.point, _run_to(wanted.scale_weights or (1.0,) * transformer.spec.scales))
        with torch.set_grad_enabled(self._curriculum.trains != "own" or wanted.point is not None):
            show(forward, transformer, look)
        if not losses:
            raise UserError(f"{self._curriculum.name}: its own loss sees {wanted.sees}, of which nothing runs")
        return torch.stack(losses).mean()

    def follow(self, wanted: TrainStep) -> bool:
        """Whether all that a step does on the device follows from what is wanted: experts are told to the host, and what a plugin's
        own loss does nobody knows."""
        return wanted.loss != "own" and self._curriculum.width_of(wanted.point) is None

    def _places(self, spec: ModelSpec, run: tuple[int, ...], weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Where the tokens of the scales of `run` lie among all, and what each of them weighs."""
        if (run, weights) not in self._known_places:
            places = [torch.arange(spec.starts[scale], spec.starts[scale + 1]) for scale in run]
            weight = [torch.full((spec.tokens[scale],), weights[scale]) for scale in run]
            self._known_places[run, weights] = torch.cat(places).to(self._device), torch.cat(weight).to(self._device)
        return self._known_places[run, weights]

    def _pass(self, point: str | None, scales: int) -> TeacherPass:
        key = (point, scales)
        if key not in self._known:
            plan, backbone = self._curriculum.plan_of(point)
            steps = tuple(step for step in plan.steps if step.samples < scales)
            width = self._curriculum.width_of(point)
            self._known[key] = TeacherPass(replace(plan, steps=steps), backbone, width, recompute=self._recompute)
        return self._known[key]

    @torch.no_grad()
    def _soft_targets(self, features_BLD: Tensor, labels_B: Tensor, run: tuple[int, ...]) -> Tensor:
        """The teacher's log probabilities for the scales of `run`."""
        if self._teacher is None or self._teacher_pass is None:
            raise UserError(
                f"{self._curriculum.name} asks for a kl loss, and its stage names no teacher. Set Stage(teacher=...)."
            )
        return self._teacher_pass.logits(
            self._teacher.transformer, features_BLD, labels_B, dtype=self._dtype, attend=self._attend, sampled=run
        ).log_softmax(-1)


def _run_to(weights: tuple[float, ...]) -> int:
    """How many scales have to run: those after the last that weighs anything do not."""
    weighing = [scale for scale, weight in enumerate(weights) if weight > 0]
    if not weighing:
        raise UserError(f"the scale weights {weights} are all 0, so the step would train nothing. Give one a weight.")
    return weighing[-1] + 1
