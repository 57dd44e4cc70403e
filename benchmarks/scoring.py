"""What scoring 2,000 images of `tiny` costs, the judge included, and against another checkout.

    python benchmarks/scoring.py --against ../varbench-before

Images come a batch of 32 at a time, as a run hands them over; the reference's features are there already, as for every row
but the first. Both checkouts take turns; processor time. A minute.
"""

from __future__ import annotations

import operator
import tempfile
import time

from checkouts import BEFORE, HERE, Turn, answers, table

COUNT, BATCH = 2_000, 32


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        found = answers(__file__, scores, doc=__doc__, turns=6, variables={"XDG_CACHE_HOME": cache})
    table(found, {part: operator.itemgetter(part) for part in ("networks", "scores", "together")})
    if BEFORE in found:
        ours, theirs = (found[name][0]["values"] for name in (HERE, BEFORE))
        for name, value in ours.items():
            if value is not None:
                print(f"\n{name}: {value:.7g}, before {theirs[name]:.7g}")


def scores(turn: Turn) -> None:
    import numpy as np

    from varbench.data.shapes import Shapes
    from varbench.plan import presets
    from varbench.quality import Scoring, load_network, reference_images

    assets, data = presets.asset_folder("tiny"), Shapes(side=32)
    network, judge = (load_network(assets / f"{kind}.safetensors") for kind in ("features", "judge"))
    reference = reference_images(data.images(data.test[:COUNT]), source="held out")
    other = data.test[COUNT : 2 * COUNT]
    grain = np.random.RandomState(0).randint(-9, 10, (COUNT, 3, 32, 32))
    images, labels = np.clip(data.images(other) + grain, 0, 255).astype(np.uint8), data.labels(other)

    def scoring(count: int) -> Scoring:
        made = Scoring(reference, network, side=32, judge=judge, second_opinion=False)
        for first in range(0, count, BATCH):
            made.take(images[first : first + BATCH], labels[first : first + BATCH])
        return made

    scoring(2 * BATCH).scores()  # libraries are imported, the reference is seen
    while True:
        began = time.process_time()
        looked = scoring(COUNT)
        between = time.process_time()
        found = looked.scores(expected=COUNT)
        ended = time.process_time()
        turn({
            "networks": between - began, "scores": ended - between, "together": ended - began,
            "values": {score.name: score.value for score in found.all()},
        })  # fmt: skip


if __name__ == "__main__":
    main()
