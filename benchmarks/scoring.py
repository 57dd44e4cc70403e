"""What scoring 2,000 images of `tiny` costs, the judge included, and against another checkout.

    python benchmarks/scoring.py --against ../varbench-before

Images come a batch of 32 at a time, as a run hands them over; the reference's features are there already, as for every row
but the first. Processes of both checkouts take turns; medians of one thread's processor time. A minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COUNT, BATCH = 2_000, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scores-here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.scores_here:
        print(json.dumps(scores()))
        return
    here = Path(__file__).resolve().parent.parent
    checkouts = {"here": here} | ({"before": args.against.resolve()} if args.against else {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(args.rounds):
            for name, checkout in list(checkouts.items())[:: 1 if number % 2 else -1]:
                found[name].append(in_checkout(checkout, cache))
    report(found)


def in_checkout(checkout: Path, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}
    done = subprocess.run(
        [sys.executable, __file__, "--scores-here"], env=environment, cwd=checkout, stdout=subprocess.PIPE, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert Path(answer["package"]).is_relative_to(checkout), (answer["package"], checkout)
    return answer


def scores() -> dict[str, Any]:
    import numpy as np

    import varbench
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
    began = time.process_time()
    looked = scoring(COUNT)
    between = time.process_time()
    found = looked.scores(expected=COUNT)
    ended = time.process_time()
    return {
        "package": varbench.__file__,
        "networks": between - began,
        "scores": ended - between,
        "together": ended - began,
        "values": {score.name: score.value for score in found.all()},
    }


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    def cost(name: str, part: str) -> float:
        return statistics.median(answer[part] for answer in found[name])

    against = "before" in found
    print("| part | processor ms |" + (" before | before / now |" if against else ""))
    print("|---|---|" + ("---|---|" if against else ""))
    for part in ("networks", "scores", "together"):
        now = cost("here", part)
        before = f" {1e3 * cost('before', part):.0f} | {cost('before', part) / now:.2f} |" if against else ""
        print(f"| {part} | {1e3 * now:.0f} |{before}")
    if against:
        ours, theirs = (found[name][0]["values"] for name in ("here", "before"))
        for name, value in ours.items():
            if value is not None:
                print(f"\n{name}: {value:.7g}, before {theirs[name]:.7g}")


if __name__ == "__main__":
    main()
