"""Fréchet distance of two Gaussians in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    root, apart = root_of(first.sigma), first.mu - second.mu
    traces = np.trace(first.sigma) + np.trace(second.sigma)
    return max(0.0, float(apart @ apart + traces - 2 * trace_of_root(root @ second.sigma @ root)))


def root_of(sigma: Matrix) -> Matrix:
    eigenvalues, vectors = np.linalg.eigh(sigma)
    root: Matrix = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return root


def trace_of_root(symmetric: Matrix) -> float:
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(symmetric), 0, None)).sum())
