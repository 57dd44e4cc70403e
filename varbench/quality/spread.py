"""Place, size and hue of the one figure in each image, and whether samples spread like the data.

Made for sets like `shapes`, a figure on a smooth ground. The ground is the plane fitted to the border pixels of each
channel; what is far from it is the figure. Read from pixels alone, so generated images and real ones are read alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""(N,)."""

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
