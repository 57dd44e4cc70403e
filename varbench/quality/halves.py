"""Figures of halves of a set of images: how far the halves lie apart says how far other images would lead.

A set is split many times into two halves, each with half of every class: labels are given, not drawn, so what differs
between classes is no luck. Half of the difference between the two halves of a split strays as the figure of the whole does,
whether the figure is a mean, a distance, or a share of what is reached by anything at all. The splits are the same in every
row that has the same labels, so that two rows can be compared split by split: what the noise of an image does in both rows
is then no difference. `benchmarks/quality_coverage.py` tries all this on sets whose truth is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.quality.frechet import Gaussian, frechet_distances
from varbench.quality.manifold import Features, in_double

Splits = NDArray[np.bool_]
"""(S, N): which images are in the first half of each split."""

_SPLITS = 40
_FEWER = 12
"""Of wide features, where each half costs seconds."""
_WIDE = 512
_ROWS = 512
_NEAREST = 32
"""Neighbours that are looked through for some that are in the same half; that hardly any are happens in one of millions."""


@dataclass(frozen=True)
class Halves:
    """A figure of the first and of the second half of every split."""

    first_S: NDArray[np.float64]
    second_S: NDArray[np.float64]

    @property
    def swings_S(self) -> NDArray[np.float64]:
        """Half of the difference of the halves."""
        return (self.first_S - self.second_S) / 2

    @property
    def all(self) -> NDArray[np.float64]:
        return np.concatenate([self.first_S, self.second_S])


def splits_of(labels: NDArray[np.int64], *, dimensions: int, seed: int) -> Splits:
    rng = np.random.RandomState(seed)
    found = np.empty((_SPLITS if dimensions <= _WIDE else _FEWER, len(labels)), bool)
    for split in found:
        shuffled = rng.permutation(len(labels))
        split[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % 2 == 0
    return found


def of_distances(features_ND: Features, reference: Gaussian, splits: Splits) -> Halves:
    """Of the Fréchet distance."""
    centred = features_ND.astype(np.float64) - reference.mu
    total, products = centred.sum(axis=0), centred.T @ centred

    def half(n: int, sums: Features, squares: Features) -> Gaussian:
        mean = sums / n
        return Gaussian(mu=mean + reference.mu, sigma=(squares - n * np.outer(mean, mean)) / (n - 1))

    def both() -> Iterator[Gaussian]:
        for split in splits:
            part = centred[split]
            sums, squares = part.sum(axis=0), part.T @ part
            yield half(len(part), sums, squares)
            yield half(len(centred) - len(part), total - sums, products - squares)

    values = frechet_distances(both(), reference)
    return Halves(values[::2], values[1::2])


def of_kernel_distances(features_ND: Features, real_ND: Features, splits: Splits) -> Halves:
    """Of KID with the whole reference, less what that has with itself: the cubic kernel of Bińkowski et al."""
    samples, real = in_double(features_ND), in_double(real_ND)
    member = torch.from_numpy(np.concatenate([splits, ~splits])).double()
    sizes = member.sum(dim=1)
    pairs, with_real = torch.zeros(len(member)).double(), torch.zeros(len(member)).double()
    for rows, inside in zip(torch.split(samples, _ROWS), torch.split(member, _ROWS, dim=1), strict=True):
        kernel = _cubic(rows @ samples.T, samples)
        pairs += ((inside @ kernel) * member).sum(dim=1)
        # No image beside itself.
        pairs -= inside @ _cubic(rows.square().sum(dim=1), samples)
        with_real += inside @ _cubic(rows @ real.T, samples).mean(dim=1)
    values = (pairs / (sizes * (sizes - 1)) - 2 * with_real / sizes).numpy()
    return Halves(*np.split(values, 2))


def of_coverages(samples_MD: Features, real_ND: Features, reaches_N: NDArray[np.float64], splits: Splits) -> Halves:
    """Of the share of real images that have a sample within reach."""
    samples, real = in_double(samples_MD), in_double(real_ND)
    member = torch.from_numpy(np.concatenate([splits, ~splits])).double()
    covered = torch.zeros(len(member)).double()
    for rows, reach in zip(torch.split(real, _ROWS), torch.split(torch.from_numpy(reaches_N), _ROWS), strict=True):
        inside = (torch.cdist(rows, samples) < reach[:, None]).double()
        covered += (inside @ member.T > 0).sum(dim=0)
    return Halves(*np.split((covered / len(real)).numpy(), 2))


def of_recalls(samples_MD: Features, real_ND: Features, splits: Splits, *, neighbours: int) -> Halves:
    """Of the share of real images within any sample's radius, which reaches to its nearest samples of the same half."""
    samples, real = in_double(samples_MD), in_double(real_ND)
    member = torch.from_numpy(np.concatenate([splits, ~splits]))
    radii = torch.cat(
        [_radii(torch.cdist(rows, samples), member, neighbours) for rows in torch.split(samples, _ROWS)], dim=1
    )
    # A sample of the other half covers nothing.
    radii = torch.where(member, radii, -1.0)
    covered = torch.zeros(len(member)).double()
    for rows in torch.split(real, _ROWS):
        apart = torch.cdist(rows, samples)
        # Few pairs are near enough in any of the halves; only they are looked at in each.
        image, sample = (apart <= radii.amax(dim=0)).nonzero(as_tuple=True)
        reached = (apart[image, sample] <= radii[:, sample]).double()
        covered += (torch.zeros(len(member), len(rows)).double().index_add_(1, image, reached) > 0).sum(dim=1)
    return Halves(*np.split((covered / len(real)).numpy(), 2))


def _radii(apart: torch.Tensor, member: torch.Tensor, neighbours: int) -> torch.Tensor:
    """(H, n) of distances (n, N): how far it is to the nearest that are members, beside the image itself."""
    near, places = apart.topk(min(_NEAREST, apart.shape[1]), largest=False)
    found = [(inside[places].cumsum(dim=1) > neighbours).long().argmax(dim=1) for inside in member]
    return torch.stack([near.gather(1, place[:, None])[:, 0] for place in found])


def _cubic(products: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return (products / of.shape[1] + 1) ** 3
