"""Is the base model that ships with `tiny` worth measuring anything on? What its samples are like, beside real images.

    python benchmarks/base_model.py --out reports/tiny

writes `base_model.md` and, to look at, `base_model.png`: two rows of samples a class. Takes five minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from base_model_data import compare_spread, measure_figures, nearest_training
from numpy.typing import NDArray
from PIL import Image

from varbench import load_pipeline
from varbench.data.shapes import Shapes
from varbench.plan import presets
from varbench.quality import (
    from_network,
    load_network,
    reference_images,
    score,
    to_uint8,
)
from varbench.quality.extractors import extract
from varbench.train.budgets import BASE

COUNT, BATCH, CFG = 2_000, 50, 1.5
Bytes = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = Shapes(side=32)
    labels = np.arange(COUNT) % len(data.classes)
    samples = generated(labels, seed=args.seed)
    (args.out / "base_model.md").write_text(report(samples, labels, data))
    grid = samples[: 2 * len(data.classes)].reshape(2, -1, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(64, -1, 3)
    Image.fromarray(grid).resize((3 * grid.shape[1], 3 * grid.shape[0]), Image.Resampling.NEAREST).save(
        args.out / "base_model.png"
    )


def generated(labels: NDArray[np.int64], *, seed: int) -> Bytes:
    files = presets.shipped_files("tiny")
    pipe = load_pipeline("tiny", vae=files["vae"], var=files["main"], dtype="bfloat16")
    batches = []
    for start in range(0, len(labels), BATCH):
        out = pipe.generate(labels[start : start + BATCH].tolist(), seed=seed, cfg=CFG, first_image=start)
        batches.append(to_uint8(out.images))
        print(f"{start + BATCH} of {len(labels)} samples", file=sys.stderr)
    return np.concatenate(batches)


def report(samples: Bytes, labels: NDArray[np.int64], data: Shapes) -> str:
    held_out, training = data.images(data.test[:COUNT]), data.images(data.training[: BASE.images])
    network, judge = (
        load_network(presets.asset_folder("tiny") / f"{kind}.safetensors") for kind in ("features", "judge")
    )
    extractor = from_network(network)
    reference = reference_images(held_out, source="shapes, held out")
    found = score(
        samples, labels, reference=reference, network=extractor, judge=judge, expected=COUNT, second_opinion=False
    )
    spread = compare_spread(measure_figures(samples), measure_figures(held_out))
    pixels = nearest_training(*(images.astype(np.float32) / 255 for images in (samples, training, held_out)))
    features = nearest_training(*(extract(extractor, images).features_ND for images in (samples, training, held_out)))
    scores = "\n".join(
        f"| {one.name} | {one.value:.4g} | {'' if one.low is None else f'{one.low:.4g} to {one.high:.4g}'} |"
        for one in found.all()
        if one.value is not None
    )
    return f"""# The base model that ships with `tiny`

{COUNT:,} samples at cfg {CFG}, no top-k or top-p, bfloat16, beside {COUNT:,} held-out images. Made by
`python benchmarks/base_model.py --out reports/tiny`.

![two samples of each class](base_model.png)

| score | value | 95 % interval |
|---|---|---|
{scores}

## Does it cover the data?
Greatest distance between the cumulative shares of samples and of held-out images, read off the pixels; 0 is alike, 1 is
apart. Two real sets of this size differ by more than the last column in 1 of 20 cases.

| | distance | by chance |
|---|---|---|
| place, across | {spread.x:.3f} | {spread.noise:.3f} |
| place, down | {spread.y:.3f} | {spread.noise:.3f} |
| size | {spread.size:.3f} | {spread.noise:.3f} |
| hue | {spread.hue:.3f} | {spread.hue_noise:.3f} |

## Does it copy its training images?
Distance to the nearest of the {BASE.images:,} training images. The last column is the share of samples that are nearer to
one than 99 % of the held-out images are; 1 % is what chance gives.

| by | samples, median | held-out images, median | nearer than real ones are |
|---|---|---|---|
| pixels | {pixels.samples_median:.3f} | {pixels.real_median:.3f} | {pixels.closer_than_real:.1%} |
| features | {features.samples_median:.3f} | {features.real_median:.3f} | {features.closer_than_real:.1%} |
"""


if __name__ == "__main__":
    main()
