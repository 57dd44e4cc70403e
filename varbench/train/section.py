"""A training's record, as the section of a row's record."""

from __future__ import annotations

from typing import Any

from varbench.record import Evaluation, LossCurve, Score, Training
from varbench.train.recipes import RecipeWeights


def section(weights: RecipeWeights, *, recipe: str, model: str) -> Training:
    """A recipe may have stages; their steps and seconds add up, and those in which a model made what is learnt."""
    record = weights.record
    assert record is not None
    stages: dict[str, dict[str, Any]] = record["stages"]
    first, steps = next(iter(stages.values())), sum(stage["steps"] for stage in stages.values())
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
        seconds=sum(stage["seconds"] for stage in stages.values()) + record.get("examples", {}).get("seconds", 0.0),
        seed=first["seed"],
        origin=weights.origin,
        device=first["device"],
        command=f"varbench train {recipe} --model {model} --steps {steps} --seed {first['seed']}",
        losses=tuple(curves),
        evaluations=tuple(evaluations),
    )


def _evaluation(look: dict[str, Any], *, before: int, data: str) -> Evaluation:
    score = Score(
        name="held-out loss", value=look["value"], low=look["low"], high=look["high"], n=look["n"], better="lower",
        implementation="varbench", features=None, weights_sha256=None, reference=data,
    )  # fmt: skip
    return Evaluation(step=before + look["step"], point=look["point"], score=score)
