"""The `training` section of a row's record, from what the process that trained has seen. No plugin is asked."""

from __future__ import annotations

from varbench.record import HELD_OUT_LOSS, Evaluation, LossCurve, Score, Training
from varbench.train.training_log import HeldOutLoss, TrainingLog


def section(log: TrainingLog, *, recipe: str, model: str) -> Training:
    """A recipe may have stages; their steps and seconds add up, and those in which a model made what is learnt."""
    steps = sum(stage.steps for stage in log.stages)
    curves: list[LossCurve] = []
    evaluations: list[Evaluation] = []
    before = 0
    for stage in log.stages:
        title = f"{stage.name}, " if len(log.stages) > 1 else ""
        for point, losses in stage.losses.items():
            done = tuple(before + step for step, _ in losses)
            curves.append(LossCurve(point=title + point, steps=done, losses=tuple(loss for _, loss in losses)))
        evaluations += [_evaluation(look, before=before, data=log.data) for look in stage.looks]
        before += stage.steps
    first = log.stages[0]
    return Training(
        key=log.key,
        recipe=recipe,
        steps=steps,
        seconds=sum(stage.seconds for stage in log.stages) + log.making_examples,
        seed=first.seed,
        origin=log.origin,
        device=first.device,
        command=f"varbench train {recipe} --model {model} --steps {steps} --seed {first.seed}",
        losses=tuple(curves),
        evaluations=tuple(evaluations),
    )


def _evaluation(look: HeldOutLoss, *, before: int, data: str) -> Evaluation:
    score = Score(
        name=HELD_OUT_LOSS, value=look.value, low=look.low, high=look.high, n=look.n, better="lower",
        implementation="varbench", features=None, weights_sha256=None, reference=data,
    )  # fmt: skip
    return Evaluation(step=before + look.step, point=look.point, score=score)
