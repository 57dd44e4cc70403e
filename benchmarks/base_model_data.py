"""What a model has made of its data: whether samples spread like it in place, size and hue, and whether they are copies.

The first is made for sets like `shapes`, a figure on a smooth ground. The ground is the plane fitted to the border pixels of each
channel; what is far from it is the figure. Read from pixels alone, so generated images and real ones are read alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""(N,)."""

Reals = NDArray[np.floating]

_FAR = 0.5
"""Of the greatest distance from the ground in the image: pixels beyond belong to the figure."""


@dataclass(frozen=True)
class Figures:
    """Lengths are fractions of the side. Hue is in [0, 1) and wraps."""

    x: Values
    y: Values
    size: Values
    """Root mean square distance of the figure's pixels from its centre."""
    hue: Values


def measure_figures(images: NDArray[np.uint8]) -> Figures:
    """What is seen in each image, (N, 3, S, S) uint8."""
    side = images.shape[-1]
    pixels = images.astype(np.float64).reshape(len(images), 3, -1) / 255
    place = (np.arange(side) + 0.5) / side
    y, x = (grid.reshape(-1) for grid in np.meshgrid(place, place, indexing="ij"))
    plane = np.stack([np.ones_like(x), x, y], axis=1)
    border = (np.minimum(x, y) < 1.5 / side) | (np.maximum(x, y) > 1 - 1.5 / side)
    coefficients = pixels[:, :, border] @ np.linalg.pinv(plane[border]).T
    apart = np.linalg.norm(pixels - coefficients @ plane.T, axis=1)
    weight = (apart > _FAR * apart.max(axis=1, keepdims=True)).astype(np.float64)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1)
    centre_x, centre_y = weight @ x, weight @ y
    squares = (x - centre_x[:, None]) ** 2 + (y - centre_y[:, None]) ** 2
    colour = np.einsum("ncp,np->nc", pixels, weight)
    return Figures(x=centre_x, y=centre_y, size=np.sqrt((weight * squares).sum(axis=1)), hue=_hue(colour))


@dataclass(frozen=True)
class Spread:
    """The greatest distance between the cumulative shares of samples and of real images; 0 is alike, 1 is apart.

    For hue, which has no beginning, the sum of the greatest distances above and below (Kuiper's). `noise` is what two
    real sets of these sizes reach by chance in 1 of 20 cases, without and with the sum.
    """

    x: float
    y: float
    size: float
    hue: float
    noise: float
    hue_noise: float


def compare_spread(samples: Figures, real: Figures) -> Spread:
    """How alike samples and real images lie in place, size and hue."""
    effective = len(samples.x) * len(real.x) / (len(samples.x) + len(real.x))
    return Spread(
        x=max(_above_below(samples.x, real.x)),
        y=max(_above_below(samples.y, real.y)),
        size=max(_above_below(samples.size, real.size)),
        hue=sum(_above_below(samples.hue, real.hue)),
        noise=1.358 / float(np.sqrt(effective)),
        hue_noise=1.747 / float(np.sqrt(effective)),
    )


def _above_below(samples: Values, real: Values) -> tuple[float, float]:
    steps = np.concatenate([samples, real])
    of_samples, of_real = (np.searchsorted(np.sort(of), steps, side="right") / len(of) for of in (samples, real))
    return float(max(0.0, (of_samples - of_real).max())), float(max(0.0, (of_real - of_samples).max()))


def _hue(rgb_N3: Values) -> Values:
    """Angle in the plane of the colours, as a share of the full turn."""
    red, green, blue = rgb_N3.T
    hue: Values = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1
    return hue


@dataclass(frozen=True)
class NearestTraining:
    """Distances to the nearest training image: of samples, and of held-out real images as the measure for them."""

    samples_median: float
    real_median: float
    closer_than_real: float
    """Share of samples nearer to a training image than 99 % of the held-out real images: 0.01 is what chance gives."""


def nearest_training(samples_MD: Reals, training_ND: Reals, held_out_KD: Reals) -> NearestTraining:
    """Features or flattened pixels. Copied samples stand out by a `closer_than_real` far above 0.01."""
    training = _flat(training_ND)
    samples, held_out = (_nearest(of, training) for of in (_flat(samples_MD), _flat(held_out_KD)))
    return NearestTraining(
        samples_median=float(np.median(samples)),
        real_median=float(np.median(held_out)),
        closer_than_real=float((samples < np.quantile(held_out, 0.01)).mean()),
    )


def _nearest(points: torch.Tensor, among: torch.Tensor) -> NDArray[np.float64]:
    return torch.cat([torch.cdist(rows, among).min(dim=1).values for rows in torch.split(points, 512)]).numpy()


def _flat(features: Reals) -> torch.Tensor:
    """In float64 the fast form of cdist, with its cancellation, is exact enough."""
    return torch.from_numpy(np.asarray(features, dtype=np.float64)).flatten(1)
