"""How often the 95 % intervals of scores hold the truth, on sets whose truth is known.

    python benchmarks/quality_coverage.py

A truth is the mean of a score over all sets that are drawn: what a set of as many other images gives on average. Sets are
drawn from Gaussians, and from a pool of what tiny's feature network sees in images of shapes, as they are and with noise;
the reference stays. `bias` is by how much the score of so many images exceeds that of the whole population, beside what the
halves say. `difference` is between two rows of the same labels and noise: how often its interval holds the truth, and how
wide it is beside that of rows which share nothing. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base import stats
from varbench.base.stats import Interval
from varbench.data.shapes import TEST, Shapes
from varbench.plan.presets import asset_folder
from varbench.quality import from_network, halves, intervals, load_network
from varbench.quality.extractors import extract
from varbench.quality.frechet import frechet_distance, gaussian
from varbench.quality.halves import Halves
from varbench.quality.manifold import density_coverage, reaches

Features = NDArray[np.float64]
Draw = Callable[[np.random.RandomState], tuple[Features, Features]]
"""A set of one row, and the set that another row makes of the same labels and noise."""

CLASSES = 10
REFERENCE, POOL = 2_000, 6_000
PAIRED = ("distance", "KID")
"""Scores whose halves are kept in records."""
COLUMNS = ("population", "score", "mean", "strays", "says", "holds", "bias", "says", "difference holds", "width")


@dataclass(frozen=True)
class Figure:
    interval: Interval
    halves: Halves


@dataclass(frozen=True)
class Populations:
    reference: Features
    draws: dict[str, Draw]
    distances: dict[str, float]
    """Of the whole population to the reference."""


def populations(count: int) -> Populations:
    """Sets of `count` features each."""
    shapes, network = Shapes(), from_network(load_network(asset_folder("tiny") / "features.safetensors"))
    grain = np.random.RandomState(0)
    seen: dict[str, list[Features]] = {"reference": [], "shapes": [], "noisy shapes": []}
    for first in range(0, REFERENCE + POOL, 1000):
        images = shapes.images(TEST[first : first + 1000])
        found = extract(network, images).features_ND.astype(np.float64)
        if first < REFERENCE:
            seen["reference"].append(found)
            continue
        noisy = np.clip(np.rint(images + grain.standard_normal(images.shape) * 6), 0, 255).astype(np.uint8)
        seen["shapes"].append(found)
        seen["noisy shapes"].append(extract(network, noisy).features_ND.astype(np.float64))
    pool = {name: np.concatenate(parts) for name, parts in seen.items()}
    reference = pool.pop("reference")
    real = gaussian(reference)
    labels = shapes.labels(TEST[REFERENCE : REFERENCE + POOL])
    by_class = [np.flatnonzero(labels == one) for one in range(CLASSES)]

    def picked(name: str, other: str) -> Draw:
        def draw(rng: np.random.RandomState) -> tuple[Features, Features]:
            places = np.stack([rng.choice(places, count // CLASSES) for places in by_class], axis=1).ravel()
            return pool[name][places], pool[other][places]

        return draw

    def drawn(shift: float, scale: float) -> Draw:
        root = np.linalg.cholesky(real.sigma + 1e-9 * np.eye(len(real.mu)))

        def draw(rng: np.random.RandomState) -> tuple[Features, Features]:
            noise = rng.standard_normal((count, len(real.mu))) @ root.T
            return real.mu + shift + scale * noise, real.mu + scale * noise

        return draw

    draws = {"shapes": picked("shapes", "noisy shapes"), "noisy shapes": picked("noisy shapes", "shapes")}
    far = 0.2 * float(np.sqrt(np.diag(real.sigma)).mean())
    draws |= {"Gaussian": drawn(0.0, 1.0), "Gaussian, moved": drawn(far, 0.9)}
    rng = np.random.RandomState(1)
    whole = {name: gaussian(pool[name]) for name in ("shapes", "noisy shapes")}
    whole |= {name: gaussian(np.concatenate([draws[name](rng)[0] for _ in range(200)])) for name in list(draws)[2:]}
    return Populations(reference, draws, {name: frechet_distance(found, real) for name, found in whole.items()})


def figures(features: Features, reference: Features, scores: tuple[str, ...]) -> dict[str, Figure]:
    """Scores with their intervals, as they are printed."""
    labels = np.arange(len(features)) % CLASSES
    splits = halves.splits_of(labels, dimensions=features.shape[1], seed=0)
    found: dict[str, Figure] = {}
    if "distance" in scores:
        real = gaussian(reference)
        of_halves = halves.of_distances(features, real, splits)
        value = frechet_distance(gaussian(features), real)
        found["distance"] = Figure(intervals.of_square(value, of_halves), of_halves)
    if "KID" in scores:
        of_halves = halves.of_kernel_distances(features, reference, splits)
        # Without bias in n, so that the halves' mean is the whole's.
        found["KID"] = Figure(intervals.around(float(of_halves.all.mean()), of_halves), of_halves)
    if "recall" in scores:
        of_halves = halves.of_recalls(features, reference, splits, neighbours=3)
        found["recall"] = Figure(
            intervals.share_around(_recall(features, reference), of_halves, len(reference)), of_halves
        )
    if "coverage" in scores:
        reaching = reaches(reference)
        of_halves = halves.of_coverages(features, reference, reaching, splits)
        covered = float(density_coverage(features, reference, reaches_N=reaching).covered_N.mean())
        found["coverage"] = Figure(intervals.share_around(covered, of_halves, len(reference)), of_halves)
    return found


def _recall(features: Features, reference: Features) -> float:
    samples, real = torch.from_numpy(features), torch.from_numpy(reference)
    reach = torch.cdist(samples, samples).kthvalue(4).values
    return float((torch.cdist(real, samples) <= reach).any(dim=1).double().mean())


@dataclass(frozen=True)
class Coverage:
    """Of one score on one population."""

    mean: float
    strays: float
    """Deviation over the sets."""
    says: float
    """Deviation that the intervals say, on average."""
    holds: float
    """Share of the intervals that hold the mean."""
    bias: tuple[float, float] | None
    """Of the distance: how it is, and what the halves say."""
    difference_holds: float | None
    width: float | None
    """Of the difference's interval, over that of two rows which share nothing; of scores that rows are compared by so."""


def coverage(
    name: str, given: Populations, *, repeats: int, scores: tuple[str, ...], seed: int = 0
) -> dict[str, Coverage]:
    rng = np.random.RandomState(seed)
    sets = [given.draws[name](rng) for _ in range(repeats)]
    compared = tuple(score for score in scores if score in PAIRED)
    pairs = [(figures(one, given.reference, scores), figures(other, given.reference, compared)) for one, other in sets]
    found = {}
    for score in scores:
        ours = [pair[0][score] for pair in pairs]
        values = np.array([one.interval.value for one in ours])
        others = [pair[1][score] for pair in pairs if score in compared]
        gaps = [
            stats.paired_difference(
                other.interval, one.interval, list(zip(other.halves.swings_S, one.halves.swings_S, strict=True))
            )
            for one, other in zip(ours, others, strict=False)
        ]
        apart = [stats.difference(other.interval, one.interval) for one, other in zip(ours, others, strict=False)]
        bias = None
        if score == "distance":
            said = np.mean([one.halves.all.mean() - one.interval.value for one in ours])
            bias = (float(values.mean() - given.distances[name]), float(said))
        found[score] = Coverage(
            mean=float(values.mean()),
            strays=float(values.std(ddof=1)),
            says=float(np.mean([one.interval.high - one.interval.low for one in ours])) / 2 / intervals.NORMAL,
            holds=_share([one.interval for one in ours], float(values.mean())),
            bias=bias,
            difference_holds=_share(gaps, float(np.mean([gap.value for gap in gaps]))) if gaps else None,
            width=_width(gaps) / _width(apart) if gaps else None,
        )
    return found


def _share(found: list[Interval], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def _width(found: list[Interval]) -> float:
    return float(np.mean([one.high - one.low for one in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000, help="in a set; default: 1000")
    parser.add_argument("--repeats", type=int, default=200, help="sets drawn of each population; default: 200")
    args = parser.parse_args()
    from tabulate import tabulate

    given = populations(args.images)
    rows = []
    for name in given.draws:
        scores = ("distance", "KID", "recall", "coverage") if "shapes" in name else ("distance", "KID")
        for score, one in coverage(name, given, repeats=args.repeats, scores=scores).items():
            biases = ["", ""] if one.bias is None else [f"{part:.4f}" for part in one.bias]
            rows.append([
                name, score, f"{one.mean:.4g}", f"{one.strays:.2g}", f"{one.says:.2g}", f"{one.holds:.3f}", *biases,
                *("" if figure is None else f"{figure:.3f}" for figure in (one.difference_holds, one.width)),
            ])  # fmt: skip
    print(tabulate(rows, headers=COLUMNS, disable_numparse=True))


if __name__ == "__main__":
    main()
