"""What the neighbourhoods of features say: density and coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.errors import UserError

FeatureRows = NDArray[np.floating]

_NEIGHBOURS = 5
_ROWS = 512


@dataclass(frozen=True)
class DensityCoverage:
    """Per image, so that intervals can be made: their means are the two figures of Naeem et al. (arXiv 2002.09797)."""

    density_M: NDArray[np.float64]
    """For each sample, the real neighbourhoods it lies in, over k: 1 on average for samples like the real images."""
    covered_N: NDArray[np.bool_]
    """For each real image, whether a sample lies in its neighbourhood."""


def reaches(real_ND: FeatureRows) -> NDArray[np.float64]:
    """How far each real image's neighbourhood reaches: to the 5th nearest other real image, as in the authors' paper."""
    if len(real_ND) <= _NEIGHBOURS:
        raise UserError(f"coverage needs more than {_NEIGHBOURS} reference images, and there are {len(real_ND)}.")
    real = in_double(real_ND)
    # The nearest is the image itself, at distance 0.
    radii = [torch.cdist(rows, real).kthvalue(_NEIGHBOURS + 1).values for rows in torch.split(real, _ROWS)]
    return torch.cat(radii).numpy()


def density_coverage(
    samples_MD: FeatureRows, real_ND: FeatureRows, *, reaches_N: NDArray[np.float64] | None = None
) -> DensityCoverage:
    """`reaches_N` are the real images' `reaches`, where they are known already."""
    radii = torch.from_numpy(reaches(real_ND) if reaches_N is None else reaches_N)
    samples, real = in_double(samples_MD), in_double(real_ND)
    within = torch.zeros(len(samples), dtype=torch.float64)
    covered = []
    for rows, reach in zip(torch.split(real, _ROWS), torch.split(radii, _ROWS), strict=True):
        inside = torch.cdist(rows, samples) < reach[:, None]
        within += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
    return DensityCoverage(density_M=(within / _NEIGHBOURS).numpy(), covered_N=torch.cat(covered).numpy())


def in_double(features: FeatureRows) -> torch.Tensor:
    """In float64 the fast form of cdist, with its cancellation, is exact enough."""
    return torch.from_numpy(np.asarray(features, dtype=np.float64)).flatten(1)
