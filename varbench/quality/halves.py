"""Figures of parts of a set of images: how far the parts lie apart says how far other images would lead.

A set is split many times into two halves, each with half of every class: labels are given, not drawn, so what differs
between classes is no luck. Half of the difference between the two halves of a split strays as the figure of the whole does,
but for what noise adds to a distance, which says itself by how far the halves' mean lies above the whole
(`varbench.quality.intervals`). The splits are the same in every row that has the same labels, so that two rows can be
compared split by split: what the noise of an image does in both rows is then no difference.

Coverage, a share of what is reached by anything at all, grows less and less with the images, and halves of them stray too
little: it is taken of parts that hold two thirds. `benchmarks/quality_coverage.py` tries all this on known truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.quality.frechet import Gaussian, Matrix, root_of, trace_of_root
from varbench.quality.manifold import FeatureRows, in_double

Parts = NDArray[np.bool_]
"""(S, N): which images are in each part; of a split, which are in the first half."""

Shares = NDArray[np.float64]

HALF, TWO_THIRDS = 1 / 2, 2 / 3
_SPLITS = 40
_FEWER = 12
"""Of wide features, where each half costs seconds."""
_WIDE = 512
_ROWS = 512
_NEAREST = 32
"""Neighbours that are looked through for some that are in the same part; that hardly any are happens in one of millions."""


@dataclass(frozen=True)
class Halves:
    """A figure of the first and of the second half of every split, and of the whole."""

    first_S: NDArray[np.float64]
    second_S: NDArray[np.float64]
    whole: float

    @property
    def swings_S(self) -> NDArray[np.float64]:
        """Half of the difference of the halves."""
        return (self.first_S - self.second_S) / 2

    @property
    def means_S(self) -> NDArray[np.float64]:
        """Of the two halves of each split."""
        return (self.first_S + self.second_S) / 2

    @property
    def bias(self) -> float:
        """What half of the images add, and so what as many images again would take away."""
        return float(self.means_S.mean()) - self.whole


def splits_of(labels: NDArray[np.int64], *, dimensions: int, seed: int) -> Parts:
    return _drawn(labels, _splits(dimensions), np.arange(len(labels)) % 2 == 0, seed=seed)


def thirds_left_out(labels: NDArray[np.int64], *, dimensions: int, seed: int) -> Parts:
    """Parts with two thirds of every class."""
    return _drawn(labels, 2 * _splits(dimensions), np.arange(len(labels)) % 3 < 2, seed=seed)


def both(splits: Parts) -> Parts:
    return np.concatenate([splits, ~splits])


def variance(shares_S: Shares, *, kept: float) -> float:
    """Of the whole's share, by those of parts that keep so much of it: the more they have in common, the less they stray."""
    return kept / (1 - kept) * float(np.var(shares_S, ddof=1))


def _splits(dimensions: int) -> int:
    return _SPLITS if dimensions <= _WIDE else _FEWER


def _drawn(labels: NDArray[np.int64], count: int, taken: NDArray[np.bool_], *, seed: int) -> Parts:
    """`taken` says which places are, when the images of a class stand together in an order that is drawn."""
    rng = np.random.RandomState(seed)
    found = np.empty((count, len(labels)), bool)
    for part in found:
        shuffled = rng.permutation(len(labels))
        part[shuffled[np.argsort(labels[shuffled], kind="stable")]] = taken
    return found


def of_distances(features_ND: FeatureRows, reference: Gaussian, splits: Parts) -> Halves:
    """Of the Fréchet distance.

    Features are seen through the root of the reference's covariance, once for all parts: what the formula takes the root of is
    then a part's own covariance. Its eigenvalues are those of the products of images with each other, of which there are fewer
    where images are fewer than dimensions.
    """
    centred = features_ND.astype(np.float64) - reference.mu
    root, lengths = root_of(reference.sigma), np.square(centred).sum(axis=1)
    seen, (count, dimensions) = centred @ root, centred.shape

    def products(part: NDArray[np.bool_]) -> Matrix | None:
        rows = seen[part]
        return rows.T @ rows if len(rows) >= dimensions else None

    def distance(part: NDArray[np.bool_], squares: Matrix | None) -> float:
        n = int(part.sum())
        apart = part @ centred / n
        middle = apart @ root
        if squares is None:
            rows = seen[part] - middle
            between = rows @ rows.T
        else:
            between = squares - n * np.outer(middle, middle)
        own = (part @ lengths - n * apart @ apart) / (n - 1)
        return max(0.0, float(apart @ apart + np.trace(reference.sigma) + own - 2 * trace_of_root(between / (n - 1))))

    everything = np.ones(count, bool)
    whole, halves = products(everything), []
    for split in splits:
        first = products(split)
        second = whole - first if whole is not None and first is not None else products(~split)
        halves.append((distance(split, first), distance(~split, second)))
    firsts, seconds = np.array(halves).T
    return Halves(firsts, seconds, distance(everything, whole))


def of_kernel_distances(features_ND: FeatureRows, real_ND: FeatureRows, splits: Parts) -> Halves:
    """Of the squared distance that KID estimates, by the cubic kernel of Bińkowski et al., less what the reference has with
    itself. Each image is also held against itself, which KID leaves out: so noise adds to it as to the Fréchet distance.
    """
    samples, real = in_double(features_ND), in_double(real_ND)
    member = torch.from_numpy(np.concatenate([both(splits), np.ones_like(splits[:1])])).double()
    sizes = member.sum(dim=1)
    pairs, with_real = torch.zeros(len(member)).double(), torch.zeros(len(member)).double()
    for rows, inside in zip(torch.split(samples, _ROWS), torch.split(member, _ROWS, dim=1), strict=True):
        kernel = _cubic(rows @ samples.T, samples)
        pairs += ((inside @ kernel) * member).sum(dim=1)
        with_real += inside @ _cubic(rows @ real.T, samples).mean(dim=1)
    values = (pairs / sizes.square() - 2 * with_real / sizes).numpy()
    first, second = np.split(values[:-1], 2)
    return Halves(first, second, float(values[-1]))


def of_coverages(samples_MD: FeatureRows, real_ND: FeatureRows, reaches_N: NDArray[np.float64], parts: Parts) -> Shares:
    """The share of real images that have a sample of each part within reach."""
    samples, real = in_double(samples_MD), in_double(real_ND)
    member = torch.from_numpy(parts).double()
    covered = torch.zeros(len(member)).double()
    for rows, reach in zip(torch.split(real, _ROWS), torch.split(torch.from_numpy(reaches_N), _ROWS), strict=True):
        inside = (torch.cdist(rows, samples) < reach[:, None]).double()
        covered += (inside @ member.T > 0).sum(dim=0)
    found: Shares = (covered / len(real)).numpy()
    return found


def of_recalls(samples_MD: FeatureRows, real_ND: FeatureRows, parts: Parts, *, neighbours: int) -> Shares:
    """The share of real images within any sample's radius, which reaches to its nearest samples of the same part."""
    samples, real = in_double(samples_MD), in_double(real_ND)
    member = torch.from_numpy(parts)
    radii = torch.cat(
        [_radii(torch.cdist(rows, samples), member, neighbours) for rows in torch.split(samples, _ROWS)], dim=1
    )
    # A sample that is not in the part covers nothing.
    radii = torch.where(member, radii, -1.0)
    covered = torch.zeros(len(member)).double()
    for rows in torch.split(real, _ROWS):
        apart = torch.cdist(rows, samples)
        # Few pairs are near enough in any of the parts; only they are looked at in each.
        image, sample = (apart <= radii.amax(dim=0)).nonzero(as_tuple=True)
        reached = (apart[image, sample] <= radii[:, sample]).double()
        covered += (torch.zeros(len(member), len(rows)).double().index_add_(1, image, reached) > 0).sum(dim=1)
    found: Shares = (covered / len(real)).numpy()
    return found


def _radii(apart: torch.Tensor, member: torch.Tensor, neighbours: int) -> torch.Tensor:
    """(H, n) of distances (n, N): how far it is to the nearest that are members, beside the image itself."""
    near, places = apart.topk(min(_NEAREST, apart.shape[1]), largest=False)
    found = [(inside[places].cumsum(dim=1) > neighbours).long().argmax(dim=1) for inside in member]
    return torch.stack([near.gather(1, place[:, None])[:, 0] for place in found])


def _cubic(products: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return (products / of.shape[1] + 1) ** 3
