"""What the neighbourhoods of features say: density and coverage, and whether samples were copied from training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.errors import UserError

Features = NDArray[np.floating]

_NEIGHBOURS = 5
_ROWS = 512


@dataclass(frozen=True)
class DensityCoverage:
    """Per image, so that intervals can be made: their means are the two figures of Naeem et al. (arXiv 2002.09797)."""

    density_M: NDArray[np.float64]
    """For each sample, the real neighbourhoods it lies in, over k: 1 on average for samples like the real images."""
    covered_N: NDArray[np.bool_]
    """For each real image, whether a sample lies in its neighbourhood."""


def density_coverage(samples_MD: Features, real_ND: Features) -> DensityCoverage:
    """Neighbourhoods reach to the 5th nearest other real image, as in the authors' paper."""
    if len(real_ND) <= _NEIGHBOURS:
        raise UserError(f"coverage needs more than {_NEIGHBOURS} reference images, and there are {len(real_ND)}.")
    samples, real = _double(samples_MD), _double(real_ND)
    # The nearest is the image itself, at distance 0.
    radii = torch.cat([torch.cdist(rows, real).kthvalue(_NEIGHBOURS + 1).values for rows in torch.split(real, _ROWS)])
    within = torch.zeros(len(samples), dtype=torch.float64)
    covered = []
    for rows, reach in zip(torch.split(real, _ROWS), torch.split(radii, _ROWS), strict=True):
        inside = torch.cdist(rows, samples) < reach[:, None]
        within += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
    return DensityCoverage(density_M=(within / _NEIGHBOURS).numpy(), covered_N=torch.cat(covered).numpy())


@dataclass(frozen=True)
class NearestTraining:
    """Distances to the nearest training image: of samples, and of held-out real images as the measure for them."""

    samples_median: float
    real_median: float
    closer_than_real: float
    """Share of samples nearer to a training image than 99 % of the held-out real images: 0.01 is what chance gives."""


def nearest_training(samples_MD: Features, training_ND: Features, held_out_KD: Features) -> NearestTraining:
    """Features or flattened pixels. Copied samples stand out by a `closer_than_real` far above 0.01."""
    training = _double(training_ND)
    samples, held_out = (_nearest(of, training) for of in (_double(samples_MD), _double(held_out_KD)))
    return NearestTraining(
        samples_median=float(np.median(samples)),
        real_median=float(np.median(held_out)),
        closer_than_real=float((samples < np.quantile(held_out, 0.01)).mean()),
    )


def _nearest(points: torch.Tensor, among: torch.Tensor) -> NDArray[np.float64]:
    return torch.cat([torch.cdist(rows, among).min(dim=1).values for rows in torch.split(points, _ROWS)]).numpy()


def _double(features: Features) -> torch.Tensor:
    """In float64 the fast form of cdist, with its cancellation, is exact enough."""
    return torch.from_numpy(np.asarray(features, dtype=np.float64)).flatten(1)
