"""Fréchet distance of two Gaussians in float64, and its interval by a bootstrap over blocks of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varbench.base.stats import Interval
from varbench.quality.intervals import NORMAL, balanced_blocks

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, in float64: torch-fidelity would sum the mean in float32."""

    mu: Matrix
    sigma: Matrix


def gaussian(features_ND: NDArray[np.floating]) -> Gaussian:
    features = features_ND.astype(np.float64)
    return Gaussian(mu=features.mean(axis=0), sigma=np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root comes from the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), which are real and not
    negative. `scipy.linalg.sqrtm` of S1 S2, which others use, is slower and may answer with complex numbers, and its
    argument `disp` is gone in SciPy 1.18.
    """
    return _distance(_root(first.sigma), first, second)


def distance_interval(
    value: float,
    features_ND: NDArray[np.floating],
    reference: Gaussian,
    *,
    labels: NDArray[np.int64],
    seed: int,
) -> Interval:
    """How far `value` may wander with other samples of the same generator; the reference is held fixed.

    Blocks of images, each with all classes in their shares, are drawn with replacement. A resampled set holds images
    twice, which moves the distance up, so only the spread of the draws is used and not their place. Near the floor, where the distance is all bias, it is half
    as wide again as repeats are.
    """
    count, draws = _resampling(features_ND.shape[1])
    count = min(count, len(features_ND) // 2)
    blocks = balanced_blocks(labels, count, seed=seed)
    centred = features_ND.astype(np.float64) - reference.mu
    sizes = np.bincount(blocks, minlength=count).astype(np.float64)
    sums = np.stack([centred[blocks == block].sum(axis=0) for block in range(count)])
    products = np.stack([centred[blocks == block].T @ centred[blocks == block] for block in range(count)])

    root = _root(reference.sigma)
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(draws):
        weights = np.bincount(rng.randint(count, size=count), minlength=count).astype(np.float64)
        n = weights @ sizes
        mean = weights @ sums / n
        product = np.tensordot(weights, products, axes=1)
        drawn = Gaussian(mu=mean + reference.mu, sigma=(product - n * np.outer(mean, mean)) / (n - 1))
        values.append(_distance(root, reference, drawn))
    half = NORMAL * float(np.std(values, ddof=1))
    return Interval(value=value, low=min(value, max(0.0, value - half)), high=value + half)


def _resampling(dimensions: int) -> tuple[int, int]:
    """Blocks and draws. A block keeps D x D products and a draw costs an eigen-decomposition: 2,048 wants fewer."""
    return (40, 200) if dimensions <= 256 else (16, 20)


def _root(sigma: Matrix) -> Matrix:
    eigenvalues, vectors = np.linalg.eigh(sigma)
    root: Matrix = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return root


def _distance(root: Matrix, first: Gaussian, second: Gaussian) -> float:
    between = np.linalg.eigvalsh(root @ second.sigma @ root)
    apart = first.mu - second.mu
    trace_of_root = np.sqrt(np.clip(between, 0, None)).sum()
    return float(apart @ apart + np.trace(first.sigma) + np.trace(second.sigma) - 2 * trace_of_root)
