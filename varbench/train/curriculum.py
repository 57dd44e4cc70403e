"""What the steps of a training compute: the plan of every point that a schedule names, the passes that run them, and their losses.

Letters as in `varbench.train.trainer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import Attend, explicit_attention, fused_attention
from varbench.errors import UserError
from varbench.experts import PlaceName, PlaceSeen, WidthPolicy
from varbench.model.transformer import Transformer
from varbench.plan.owned import Owned
from varbench.plan.steps import Plan
from varbench.policies import MAIN, TrainStep
from varbench.spec import ModelSpec


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
    parts: tuple[str, ...] = ()
    """As a stage says them."""
    own_loss: Callable[[PlaceSeen], Tensor] | None = None
    """Of one place, for steps whose loss is a plugin's own."""


def attention_of(device: torch.device) -> Attend:
    return explicit_attention if device.type == "cpu" else fused_attention


class Passes:
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

        def add_loss(seen: PlaceSeen) -> None:
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
            show(forward, transformer, add_loss)
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
