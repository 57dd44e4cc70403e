"""What a batch of 32 images of `tiny` costs in bfloat16, sampler and decoder included, and against another checkout.

    python benchmarks/generation.py --against ../varbench-before --threads 2

Of full model and subnets by turns, and each beside the same batch of the other checkout, by the clock. Processes have the settings
that this checkout's runs give theirs. A minute.
"""

from __future__ import annotations

import os
import time

from checkouts import Seconds, Turn, answers, table

from varbench.base import variables

ROWS = {"full": "full_var", "d8": "variant@untrained/d8", "d2": "variant@untrained/d2"}
TURNS = 16
"""Batches of each row."""


def main() -> None:
    found = answers(
        __file__,
        generations,
        doc=__doc__,
        turns=TURNS,
        parts=len(ROWS),
        variables={**variables.OF_PROCESSES, **os.environ},
    )

    def seconds(row: str) -> Seconds:
        return lambda answer: answer["seconds"] if answer["row"] == row else None

    table(found, {row: seconds(row) for row in ROWS}, of="wall")


def generations(turn: Turn) -> None:
    from varbench import load_pipeline
    from varbench.plan.presets import shipped_files

    files = shipped_files("tiny")
    pipe = load_pipeline("tiny", vae=files["vae"], var=files["main"], dtype="bfloat16")
    labels = [place % 10 for place in range(32)]
    for method in ROWS.values():
        pipe.generate(labels, seed=0, cfg=1.5, method=method)
    while True:
        for row, method in ROWS.items():
            began = time.perf_counter()
            pipe.generate(labels, seed=0, cfg=1.5, method=method)
            turn({"row": row, "seconds": time.perf_counter() - began})


if __name__ == "__main__":
    main()
