"""What a training step of `tiny` costs, of the full model and of VARiant's subnets, and against another checkout.

    python benchmarks/training_step.py --against ../varbench-before

The steps are `varbench.train.trainer.train`'s own, everything included: of full model and subnets by turns, and each beside the
same step of the other checkout. What is compared is processor time, since a step's wall time is the neighbours'
affair on a shared machine. Two minutes.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from checkouts import BEFORE, HERE, Seconds, Turn, answers, median, table

from varbench.base import variables

POINTS = ("full", "d8", "d2")
TURNS = 16
"""Steps of each point."""
ENDLESS = 10**6


def main() -> None:
    environment = {**variables.OF_PROCESSES, **os.environ}
    found = answers(__file__, steps, doc=__doc__, turns=TURNS, parts=len(POINTS), variables=environment)

    def seconds(point: str, clock: str) -> Seconds:
        return lambda answer: answer[clock] if answer["point"] == point else None

    def cost(point: str, clock: str) -> float:
        return median(found[HERE], seconds(point, clock))

    table(
        found,
        {point: seconds(point, "processor") for point in POINTS},
        **{
            "wall ms": {point: f"{1e3 * cost(point, 'clock'):.0f}" for point in POINTS},
            "of full": {point: f"{cost(point, 'processor') / cost('full', 'processor'):.3f}" for point in POINTS},
        },
    )
    if BEFORE in found:
        apart = max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in zip(found[HERE], found[BEFORE], strict=True))
        print(f"\nLosses of the same steps differ by at most {apart:.4f}.")


def steps(turn: Turn) -> None:
    import torch

    from varbench.data.shapes import Shapes
    from varbench.model.checkpoints import build_tokenizer, load_tokenizer, load_transformer
    from varbench.plan import presets
    from varbench.plan.compiler import compile_plan
    from varbench.policies import MAIN, TrainStep
    from varbench.rows.grammar import resolve
    from varbench.train.curriculum import Curriculum
    from varbench.train.states import Checkpoints
    from varbench.train.tokens import TokenSet
    from varbench.train.trainer import Budget, train

    spec, files, data = presets.preset("tiny").spec, presets.shipped_files("tiny"), Shapes(side=32)
    tokenizer = build_tokenizer(spec, load_tokenizer(files["vae"])[1], files["vae"])
    seen = data.training[:128]
    with torch.inference_mode():
        codes = tokenizer.encode(torch.from_numpy(data.images(seen)).float() / 127.5 - 1).numpy()
    tokens = TokenSet(tokens_NL=codes.astype("<u2"), labels_N=data.labels(seen), key="benchmark")
    plans = {point: compile_plan(spec, resolve(f"variant@{point}", spec).policies) for point in POINTS}
    begun = time.process_time(), time.perf_counter()

    def step_ends(step: int, figures: dict[str, Any]) -> None:
        nonlocal begun
        processor, clock = time.process_time() - begun[0], time.perf_counter() - begun[1]
        (loss,) = figures.values()
        turn({"point": POINTS[(step - 1) % len(POINTS)], "processor": processor, "clock": clock, "loss": loss})
        begun = time.process_time(), time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        train(
            load_transformer(files["main"], spec.tokenizer),
            tokenizer=tokenizer,
            tokens=tokens,
            curriculum=Curriculum(
                at=lambda step, uniform: TrainStep(point=POINTS[step % len(POINTS)]),
                plan_of=lambda point: (plans[point or "full"], MAIN),
                name="benchmark",
            ),
            budget=Budget(steps=ENDLESS, peak_rate=3e-4, warm_up=0, batch=32, looks=0),
            checkpoints=Checkpoints(Path(folder) / "state", every_seconds=1e9),
            progress=step_ends,
        )


if __name__ == "__main__":
    main()
