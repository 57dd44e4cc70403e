"""KID: the mean over random subsets of the unbiased squared MMD, with the kernel (x y / D + 1)^3, in float64.

The subsets are torch-fidelity's own, drawn in its order, and so is the value. It makes the kernels of every subset anew: a
hundred subsets of 1,000 out of 2,000 images are the same four million products, twenty-five times over. Here the kernel of
all pairs is made once, a few rows at a time, and a product with the subsets' memberships sums all of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varbench.quality.frechet import Matrix

_ROWS = 512


def kernel_distances(
    samples_MD: NDArray[np.floating], real_ND: NDArray[np.floating], *, subsets: int, size: int, seed: int
) -> Matrix:
    """Of each subset; KID is their mean."""
    rng = np.random.RandomState(seed)
    drawn = [
        (rng.choice(len(samples_MD), size, replace=False), rng.choice(len(real_ND), size, replace=False))
        for _ in range(subsets)
    ]
    samples, real = samples_MD.astype(np.float64), real_ND.astype(np.float64)
    if len(samples) * len(real) > subsets * size**2:  # of so many images most pairs are in no subset
        whole = np.ones((1, size))
        return np.concatenate([_mmd(samples[some], real[others], whole, whole) for some, others in drawn])
    in_samples, in_real = (np.zeros((subsets, len(of))) for of in (samples, real))
    for row, (some, others) in enumerate(drawn):
        in_samples[row, some] = in_real[row, others] = 1
    return _mmd(samples, real, in_samples, in_real)


def _mmd(samples: Matrix, real: Matrix, in_samples_SM: Matrix, in_real_SN: Matrix) -> Matrix:
    """Unbiased squared MMD of each of S subsets of equal size, given by who is in them."""
    size = in_samples_SM[0].sum()
    within = _sums(samples, samples, in_samples_SM, in_samples_SM) + _sums(real, real, in_real_SN, in_real_SN)
    own = in_samples_SM @ _kernel_to_itself(samples) + in_real_SN @ _kernel_to_itself(real)
    found: Matrix = (within - own) / (size * (size - 1)) - 2 * _sums(samples, real, in_samples_SM, in_real_SN) / size**2
    return found


def _sums(first: Matrix, second: Matrix, in_first: Matrix, in_second: Matrix) -> Matrix:
    """The kernel's sum over all pairs of each subset, (S,)."""
    total = np.zeros(len(in_first))
    for start in range(0, len(first), _ROWS):
        rows = slice(start, start + _ROWS)
        base = first[rows] @ second.T / first.shape[1] + 1
        total += np.einsum("sr,rs->s", in_first[:, rows], (base * base * base) @ in_second.T)
    return total


def _kernel_to_itself(of: Matrix) -> Matrix:
    found: Matrix = (np.square(of).sum(axis=1) / of.shape[1] + 1) ** 3
    return found
