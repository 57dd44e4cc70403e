"""Whether two sets of images of the same labels could be of one origin, by what a network sees in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLIPS = 20_000


def chance(first_ND: NDArray[np.float32], second_ND: NDArray[np.float32], *, seed: int = 0) -> float:
    """How often means differ as much as these when images of one label are exchanged at random: a permutation test.

    It asks nothing of how features are distributed. Its least value is one in `FLIPS`, so a handful of images is enough to
    tell two origins apart, and never to tell them apart by mistake more often than it says.
    """
    differences = (first_ND - second_ND).astype(np.float64)
    spread = np.concatenate([first_ND, second_ND]).std(axis=0)
    differences /= np.where(spread > 0, spread, 1)
    gram = differences @ differences.T  # |signs · differences|² without the features, however many
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, len(gram)))
    flipped = np.einsum("fi,ij,fj->f", signs, gram, signs, optimize=True)
    return (1 + int((flipped >= gram.sum() * (1 - 1e-9)).sum())) / (1 + FLIPS)
