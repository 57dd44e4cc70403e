"""How often the 95 % intervals of scores hold the truth, on sets whose truth is known.

    python benchmarks/quality_coverage.py

A truth is the mean of a score over all sets that are drawn: what a set of as many other images gives on average. Sets come
two by two, as rows of the same labels and noise do: of what tiny's feature network sees in images of shapes and in the same
images with noise, of Gaussians, one like the reference and one far from it, and of sets of which nearly all or nearly nothing
lies where the reference does. The reference stays. `strays` is the score's deviation over the sets, and `says` what its
interval takes it for. `bias` is by how much the score of so many images exceeds that of the whole population, beside what the
halves say. `difference` is that of the two rows of a set: how often its interval holds the truth, and how wide it is beside
that of rows which share nothing. Four minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import starmap

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base import stats
from varbench.base.stats import Interval
from varbench.data.shapes import TEST, Shapes
from varbench.plan.presets import asset_folder
from varbench.quality import from_network, halves, intervals, load_network
from varbench.quality.extractors import extract
from varbench.quality.frechet import Gaussian, frechet_distance, gaussian
from varbench.quality.halves import Halves, Parts
from varbench.quality.manifold import density_coverage, in_double, reaches

Features = NDArray[np.float64]
Draw = Callable[[np.random.RandomState], tuple[Features, Features]]
"""Sets of two rows, of the same labels and noise."""

CLASSES = 10
REFERENCE, POOL = 2_000, 6_000
NEIGHBOURS = 3
SHARES = ("recall", "precision", "coverage", "density")
SCORES = ("distance", "KID", *SHARES)
COLUMNS = ("population", "score", "mean", "strays", "says", "holds", "bias", "says", "difference holds", "width")


@dataclass(frozen=True)
class Figure:
    interval: Interval
    halves: Halves | None = None
    """Of scores that rows are compared by."""


@dataclass(frozen=True)
class Reference:
    features: Features
    statistics: Gaussian
    reaches: NDArray[np.float64]
    radii: torch.Tensor
    """To the third nearest."""


@dataclass(frozen=True)
class Couple:
    names: tuple[str, str]
    draw: Draw
    distances: tuple[float, float]
    """Of the whole populations to the reference."""


def populations(count: int, *, pool: int = POOL) -> tuple[Reference, Couple, Couple, Couple]:
    """Shapes, Gaussians, and sets whose shares are near 1 and near 0; in sets of `count`, of `pool` images."""
    shapes, network = Shapes(), from_network(load_network(asset_folder("tiny") / "features.safetensors"))
    grain = np.random.RandomState(0)
    seen: tuple[list[Features], list[Features], list[Features]] = ([], [], [])
    for first in range(0, REFERENCE + pool, 1000):
        images = shapes.images(TEST[first : first + 1000])
        found = extract(network, images).features_ND.astype(np.float64)
        if first < REFERENCE:
            seen[0].append(found)
            continue
        noisy = np.clip(np.rint(images + grain.standard_normal(images.shape) * 6), 0, 255).astype(np.uint8)
        seen[1].append(found)
        seen[2].append(extract(network, noisy).features_ND.astype(np.float64))
    real, *pools = (np.concatenate(parts) for parts in seen)
    reference = Reference(real, gaussian(real), reaches(real), _radii(in_double(real)))
    labels = shapes.labels(TEST[REFERENCE : REFERENCE + pool])
    known = shapes.labels(TEST[:REFERENCE])

    def places_of(rng: np.random.RandomState, labels_N: NDArray[np.int64], *, again: bool = True) -> NDArray[np.int64]:
        """As many of every class."""
        by_class = [np.flatnonzero(labels_N == one) for one in range(CLASSES)]
        return np.stack([rng.choice(some, count // CLASSES, replace=again) for some in by_class], axis=1).ravel()

    def picked(rng: np.random.RandomState) -> tuple[Features, Features]:
        places = places_of(rng, labels)
        return pools[0][places], pools[1][places]

    def at_the_edges(rng: np.random.RandomState) -> tuple[Features, Features]:
        """Reference images but for a few with noise; and images shrunk towards their middle, where no reference lies."""
        inside, noisy = real[places_of(rng, known, again=False)], pools[1][places_of(rng, labels)]
        few, middle = rng.random_sample(count) < 0.1, real.mean(axis=0)
        inside[few] = noisy[few]
        return inside, middle + 0.65 * (pools[0][places_of(rng, labels)] - middle)

    sigma, mu = reference.statistics.sigma, reference.statistics.mu
    root = np.linalg.cholesky(sigma + 1e-9 * np.eye(len(mu)))
    far = 0.2 * float(np.sqrt(np.diag(sigma)).mean())

    def drawn(rng: np.random.RandomState) -> tuple[Features, Features]:
        noise = rng.standard_normal((count, len(mu))) @ root.T
        return mu + noise, mu + far + 0.9 * noise

    def couple(names: tuple[str, str], draw: Draw, whole: Sequence[Features]) -> Couple:
        first, second = (frechet_distance(gaussian(one), reference.statistics) for one in whole)
        return Couple(names, draw, (first, second))

    rng = np.random.RandomState(1)
    many = [np.concatenate(parts) for parts in zip(*(drawn(rng) for _ in range(200)), strict=True)]
    return (
        reference,
        couple(("shapes", "noisy shapes"), picked, pools),
        couple(("Gaussian", "Gaussian, moved"), drawn, many),
        couple(("near 1", "near 0"), at_the_edges, pools),
    )


def figures(features: Features, reference: Reference, scores: Sequence[str]) -> dict[str, Figure]:
    """Scores with their intervals, as they are printed."""
    real, (splits, parts) = reference.features, _parts(*features.shape)
    found: dict[str, Figure] = {}
    if "distance" in scores:
        of_halves = halves.of_distances(features, reference.statistics, splits)
        found["distance"] = Figure(intervals.of_distance(of_halves.whole, of_halves), of_halves)
    if "KID" in scores:
        of_halves = halves.of_kernel_distances(features, real, splits)
        # Less what each image has with itself, which does not stray: the score but for a constant.
        found["KID"] = Figure(intervals.of_halves(of_halves.whole - of_halves.bias, of_halves), of_halves)
    if "recall" in scores:
        everything = np.ones_like(splits[:1])
        *recalls, whole = halves.of_recalls(
            features, real, np.concatenate([halves.both(splits), everything]), neighbours=NEIGHBOURS
        )
        spread = halves.variance(np.array(recalls), kept=halves.HALF)
        found["recall"] = Figure(intervals.share_around(float(whole), spread, len(real)))
    if "precision" in scores:
        apart = torch.cdist(in_double(real), in_double(features))
        inside = (apart <= reference.radii[:, None]).any(dim=0).double().mean()
        found["precision"] = Figure(intervals.share(float(inside), len(features)))
    if {"coverage", "density"} & set(scores):
        covered = density_coverage(features, real, reaches_N=reference.reaches)
        of_parts = halves.of_coverages(features, real, reference.reaches, parts)
        spread = halves.variance(of_parts, kept=halves.TWO_THIRDS)
        share = float(covered.covered_N.mean())
        found["coverage"] = Figure(intervals.share_around(share, spread, len(real)))
        found["density"] = Figure(intervals.mean(covered.density_M))
    return found


@functools.cache
def _parts(count: int, dimensions: int) -> tuple[Parts, Parts]:
    """Halves, and two thirds: the same of every set, whose labels stand in one order."""
    labels = np.arange(count) % CLASSES
    return (
        halves.splits_of(labels, dimensions=dimensions, seed=0),
        halves.thirds_left_out(labels, dimensions=dimensions, seed=0),
    )


def _radii(samples: torch.Tensor) -> torch.Tensor:
    return torch.cdist(samples, samples).kthvalue(NEIGHBOURS + 1).values


@dataclass(frozen=True)
class Coverage:
    """Of one score on one population."""

    population: str
    score: str
    mean: float
    strays: float
    says: float
    """Deviation that the intervals say, on average."""
    holds: float
    """Share of the intervals that hold the mean."""
    bias: tuple[float, float] | None
    """Of the distance: how it is, and what the halves say."""


@dataclass(frozen=True)
class Difference:
    """Of one score of the two rows of a couple."""

    score: str
    holds: float
    width: float
    """Of the interval, over that of two rows which share nothing."""


def coverage(
    couple: Couple, reference: Reference, *, repeats: int, scores: Sequence[str], seed: int = 0
) -> tuple[list[Coverage], list[Difference]]:
    rng = np.random.RandomState(seed)
    sets = [[figures(row, reference, scores) for row in couple.draw(rng)] for _ in range(repeats)]
    found = []
    for place, (name, distance) in enumerate(zip(couple.names, couple.distances, strict=True)):
        for score in scores:
            rows = [one[place][score] for one in sets]
            every = [row.interval for row in rows]
            values = np.array([one.value for one in every])
            bias = None
            if score == "distance":
                said = np.mean([row.halves.bias for row in rows if row.halves])
                bias = (float(values.mean() - distance), float(said))
            says = float(np.mean([one.high - one.low for one in every])) / 2 / intervals.NORMAL
            holds = _share(every, float(values.mean()))
            found.append(Coverage(name, score, float(values.mean()), float(values.std(ddof=1)), says, holds, bias))
    differences = []
    for score in scores:
        pairs = [(one[score], other[score]) for one, other in sets]
        gaps = [
            stats.paired_difference(
                one.interval, other.interval, list(zip(one.halves.swings_S, other.halves.swings_S, strict=True))
            )
            for one, other in pairs
            if one.halves and other.halves
        ]
        if gaps:
            apart = list(starmap(stats.difference, ((one.interval, other.interval) for one, other in pairs)))
            truth = float(np.mean([gap.value for gap in gaps]))
            differences.append(Difference(score, _share(gaps, truth), _width(gaps) / _width(apart)))
    return found, differences


def _share(found: list[Interval], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def _width(found: list[Interval]) -> float:
    return float(np.mean([one.high - one.low for one in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=600, help="in a set; default: 600")
    parser.add_argument("--repeats", type=int, default=400, help="sets drawn of each population; default: 400")
    args = parser.parse_args()
    from tabulate import tabulate

    reference, shapes, gaussians, edges = populations(args.images)
    rows = []
    for couple, scores in ((shapes, SCORES), (gaussians, SCORES[:2]), (edges, SHARES)):
        found, differences = coverage(couple, reference, repeats=args.repeats, scores=scores)
        between = {one.score: (f"{one.holds:.3f}", f"{one.width:.3f}") for one in differences}
        for one in found:
            biases = ("", "") if one.bias is None else (f"{part:.4f}" for part in one.bias)
            beside = between.get(one.score, ("", "")) if one.population == couple.names[0] else ("", "")
            figures_of = (f"{one.mean:.4g}", f"{one.strays:.2g}", f"{one.says:.2g}", f"{one.holds:.3f}")
            rows.append([one.population, one.score, *figures_of, *biases, *beside])
    print(tabulate(rows, headers=COLUMNS, disable_numparse=True, tablefmt="pipe"))


if __name__ == "__main__":
    main()
