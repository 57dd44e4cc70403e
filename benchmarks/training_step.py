"""What a training step of `tiny` costs, of the full model and of VARiant's subnets, and against another checkout.

    python benchmarks/training_step.py --against ../varbench-before

The steps are `varbench.train.trainer.train`'s own, everything included. Full model and subnets take turns within a
process, processes of both checkouts take turns; what is compared is the processor time of one thread, medians over all
steps, since a step's wall time is the neighbours' affair on a shared machine. Two minutes.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from checkouts import BEFORE, HERE, answers, median, table

from varbench.base import variables

POINTS = ("full", "d8", "d2")
TURNS = 6
"""Steps of each point in a process; the first of each is not counted."""


def main() -> None:
    found = answers(__file__, steps, doc=__doc__, variables={**variables.OF_PROCESSES, **os.environ})

    def cost(point: str, clock: int) -> float:
        return median(found[HERE], lambda answer: [one[clock] for one in answer["took"][point]])

    table(
        found,
        {point: lambda answer, point=point: [cpu for cpu, _ in answer["took"][point]] for point in POINTS},
        **{
            "wall ms": {point: f"{1e3 * cost(point, 1):.0f}" for point in POINTS},
            "of full": {point: f"{cost(point, 0) / cost('full', 0):.3f}" for point in POINTS},
        },
    )
    if BEFORE in found:
        ours, theirs = (found[name][0]["losses"] for name in (HERE, BEFORE))
        apart = max(abs(a - b) for point in ours for a, b in zip(ours[point], theirs[point], strict=True))
        print(f"\nLosses of the same steps differ by at most {apart:.4f}.")


def steps() -> dict[str, Any]:
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
    count = TURNS * len(POINTS)
    ends: list[tuple[float, float]] = [(time.process_time(), time.perf_counter())]
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            load_transformer(files["main"], spec.tokenizer),
            tokenizer=tokenizer,
            tokens=tokens,
            curriculum=Curriculum(
                at=lambda step, uniform: TrainStep(point=POINTS[step % len(POINTS)]),
                plan_of=lambda point: (plans[point or "full"], MAIN),
                name="benchmark",
            ),
            budget=Budget(steps=count, peak_rate=3e-4, batch=32, looks=0),
            checkpoints=Checkpoints(Path(folder) / "state", every_seconds=1e9),
            progress=lambda step, figures: ends.append((time.process_time(), time.perf_counter())),
        )
    took: dict[str, list[tuple[float, float]]] = {point: [] for point in POINTS}
    for step in range(len(POINTS), count):
        (cpu, wall), (cpu_before, wall_before) = ends[step + 1], ends[step]
        took[POINTS[step % len(POINTS)]].append((cpu - cpu_before, wall - wall_before))
    return {
        "took": took,
        "losses": {point: [loss for _, loss in pairs] for point, pairs in trained["losses"].items()},
    }


if __name__ == "__main__":
    main()
