"""The procedural set `shapes`: ten classes of flat figures on a graded background, made on demand and never stored.

An image is a function of (seed, index) alone: its random stream is `numpy.random.RandomState([seed, index])`, whose
output numpy has promised never to change. Sine and cosine may differ in the last bit between machines, so a pixel may
differ by one level; that is why the fingerprint is the hash of the recipe and not of the pixels.

Figures are signed distances to their outline, in pixels, evaluated at pixel centres; half a pixel on either side of the
outline is blended, which is the anti-aliasing. Shape letters: N images, S side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varbench.base.hashing import digest
from varbench.data.image_set import Indices
from varbench.errors import UserError

Floats = NDArray[np.floating]

CLASSES = (
    "disc",
    "ring",
    "square",
    "triangle",
    "cross",
    "star",
    "stripes",
    "checks",
    "crescent",
    "nested_squares",
)
TRAINING = range(10_000_000)
VALIDATION = range(10_000_000, 11_000_000)
TEST = range(11_000_000, 12_000_000)

# Change this text whenever a changed line below changes a picture: caches and shipped weights are keyed by it.
RECIPE = """shapes, version 1: ten figures, class = index mod 10, RandomState([seed, index]); radius 0.22 to 0.37 of the side, place
uniform where the figure fits, turn +-15 degrees, hue uniform, vivid on dark or deep on light, background a linear
gradient of two neighbouring hues away from the figure's, figure shaded top to bottom, grain sigma 2 of 255"""

_RADIUS = (0.22, 0.37)
_TURN = np.pi / 12
_GRAIN = 2.0 / 255
_DRAWS = 15
_CHUNK = 256


@dataclass(frozen=True)
class Latents:
    """What was drawn for each image, (N,) each. Lengths are fractions of the side, (0, 0) is the top left corner."""

    label: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius: NDArray[np.float64]
    turn: NDArray[np.float64]
    hue: NDArray[np.float64]
    figure_rgb_N3: NDArray[np.float64]
    background_rgb_N3: NDArray[np.float64]
    background_end_rgb_N3: NDArray[np.float64]
    gradient_angle: NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """The set `shapes` at one side and seed. `Shapes().images(range(8))` draws the first eight training images."""

    side: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 8:
            raise UserError(f"shapes are drawn at 8 pixels or more, and side is {self.side}. Use side=32.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed of shapes must be from 0 to {2**32 - 1}, and it is {self.seed}.")

    @property
    def name(self) -> str:
        return "shapes"

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def training(self) -> range:
        return TRAINING

    @property
    def validation(self) -> range:
        return VALIDATION

    @property
    def test(self) -> range:
        return TEST

    @property
    def fingerprint(self) -> str:
        return digest([f"{RECIPE}; side {self.side}, seed {self.seed}"])

    def labels(self, indices: Indices) -> NDArray[np.int64]:
        """Labels, (N,): balanced by construction, since ten indices in a row hold every class once."""
        return _checked(indices) % len(CLASSES)

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        """Images, (N, 3, side, side)."""
        wanted = _checked(indices)
        out = np.empty((len(wanted), 3, self.side, self.side), np.uint8)
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            draws, grain = self._draw(chunk)
            out[start : start + len(chunk)] = _render(_latents(chunk, draws), grain, self.side)
        return out

    def describe(self, indices: Indices) -> Latents:
        """What each image shows, without drawing it."""
        wanted = _checked(indices)
        return _latents(wanted, self._draw(wanted, with_grain=False)[0])

    def _draw(self, indices: NDArray[np.int64], *, with_grain: bool = True) -> tuple[NDArray[np.float64], Floats]:
        """Uniform draws (N, _DRAWS) and normal grain (N, S, S), from one stream per image."""
        draws = np.empty((len(indices), _DRAWS))
        grain = np.empty((len(indices) if with_grain else 0, self.side, self.side), np.float32)
        stream = np.random.RandomState(0)
        for row, index in enumerate(indices):
            stream.seed([self.seed, int(index)])
            draws[row] = stream.random_sample(_DRAWS)
            if with_grain:
                grain[row] = stream.standard_normal((self.side, self.side))
        return draws, grain


def _checked(indices: Indices) -> NDArray[np.int64]:
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < TEST.stop):
        raise UserError(
            f"shapes has the indices 0 to {TEST.stop - 1} (training, validation and test), and "
            f"{int(wanted.min())} to {int(wanted.max())} was asked for. Take indices from its ranges."
        )
    return wanted


def _latents(indices: NDArray[np.int64], draws: NDArray[np.float64]) -> Latents:
    (
        size,
        x,
        y,
        turn,
        hue,
        saturation,
        value,
        bg_hue,
        bg_saturation,
        bg_value,
        end_hue,
        end_value,
        angle,
        light,
        sign,
    ) = draws.T
    radius = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * size
    room = 0.5 - radius - 0.02
    on_light = light < 0.4
    # Contrast by value: vivid figures on dark grounds, deep ones on light grounds.
    figure = _rgb(
        hue,
        0.65 + 0.35 * saturation,
        np.where(on_light, 0.45 + 0.30 * value, 0.85 + 0.15 * value),
    )
    ground_hue = hue + 0.25 + 0.5 * bg_hue
    ground_saturation = np.where(on_light, 0.06 + 0.22 * bg_saturation, 0.25 + 0.50 * bg_saturation)
    ground_value = np.where(on_light, 0.86 + 0.12 * bg_value, 0.14 + 0.22 * bg_value)
    drift = np.where(on_light, -1.0, np.where(sign < 0.5, -0.5, 1.0)) * (0.04 + 0.14 * end_value)
    return Latents(
        label=indices % len(CLASSES),
        x=0.5 + room * (2 * x - 1),
        y=0.5 + room * (2 * y - 1),
        radius=radius,
        turn=_TURN * (2 * turn - 1),
        hue=hue,
        figure_rgb_N3=figure,
        background_rgb_N3=_rgb(ground_hue, ground_saturation, ground_value),
        background_end_rgb_N3=_rgb(ground_hue + 0.16 * (end_hue - 0.5), ground_saturation, ground_value + drift),
        gradient_angle=2 * np.pi * angle,
    )


def _rgb(hue: NDArray[np.float64], saturation: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """HSV to RGB, (N, 3) in [0, 1]; the hue wraps."""
    sector = (hue[:, None] * 6 + np.array([5.0, 3.0, 1.0])) % 6
    rgb: NDArray[np.float64] = value[:, None] * (
        1 - saturation[:, None] * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    )
    return rgb


def _render(latents: Latents, grain_NSS: Floats, side: int) -> NDArray[np.uint8]:
    pixel = (np.arange(side, dtype=np.float32) + 0.5) / side
    coverage_NSS = np.empty((len(latents.label), side, side), np.float32)
    shade_NSS = np.empty_like(coverage_NSS)
    cos, sin = np.cos(latents.turn), np.sin(latents.turn)
    for label in np.unique(latents.label):
        rows = latents.label == label

        def column(of: NDArray[np.float64], rows: NDArray[np.bool_] = rows) -> Floats:
            return of[rows, None, None].astype(np.float32)

        # Coordinates in the figure's own frame, in units of its radius: u to the right, v down.
        dx, dy = pixel[None, None, :] - column(latents.x), pixel[None, :, None] - column(latents.y)
        unit = 1 / column(latents.radius)
        u = (column(cos) * dx + column(sin) * dy) * unit
        v = (column(cos) * dy - column(sin) * dx) * unit
        distance = _FIGURES[label](u, v)
        coverage_NSS[rows] = np.clip(0.5 - distance * (column(latents.radius) * side), 0, 1)
        shade_NSS[rows] = 1 - 0.10 * v

    ax, ay = np.cos(latents.gradient_angle), np.sin(latents.gradient_angle)
    along_NSS = 0.5 + (
        (pixel - 0.5)[None, None, :] * (ax / (np.abs(ax) + np.abs(ay))).astype(np.float32)[:, None, None]
        + (pixel - 0.5)[None, :, None] * (ay / (np.abs(ax) + np.abs(ay))).astype(np.float32)[:, None, None]
    )
    grain_NSS = grain_NSS * np.float32(_GRAIN)
    out = np.empty((len(latents.label), 3, side, side), np.uint8)
    for channel in range(3):
        start, end, figure = (
            of[:, channel, None, None].astype(np.float32)
            for of in (latents.background_rgb_N3, latents.background_end_rgb_N3, latents.figure_rgb_N3)
        )
        ground = start + (end - start) * along_NSS
        colour = ground + coverage_NSS * (figure * shade_NSS - ground) + grain_NSS
        out[:, channel] = np.rint(np.clip(colour, 0, 1) * 255)
    return out


# Figures: signed distance to the outline (negative inside) in units of the radius, for a figure that stays within
# [-1, 1] x [-1, 1] at any turn up to 15 degrees.

_HALF_SIDE = 0.81


def _box(u: Floats, v: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _overlap(one: Floats, other: Floats) -> Floats:
    """What lies within both."""
    both: Floats = np.maximum(one, other)
    return both


def _disc(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v) - 0.95


def _ring(u: Floats, v: Floats) -> Floats:
    return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.23


def _square(u: Floats, v: Floats) -> Floats:
    return _box(u, v, _HALF_SIDE, _HALF_SIDE)


def _triangle(u: Floats, v: Floats) -> Floats:
    slope = np.float32(np.sqrt(3) / 2)
    return _overlap(v - 0.62, slope * np.abs(u) - 0.5 * (v + 0.95))


def _cross(u: Floats, v: Floats) -> Floats:
    return np.minimum(_box(u, v, 0.92, 0.27), _box(u, v, 0.27, 0.92))


def _star(u: Floats, v: Floats) -> Floats:
    """Ten equal edges: fold the plane into one tenth, where the outline is a line from a tip to an inner corner."""
    fifth, tip, inner = np.pi / 5, 1.0, 0.44
    angle = np.arctan2(u, -v)
    folded: Floats = np.abs((angle + fifth) % (2 * fifth) - fifth)
    length = np.sqrt(u * u + v * v)
    corner = np.array([inner * np.cos(fifth), inner * np.sin(fifth)])
    normal = np.array([corner[1], tip - corner[0]]) / np.hypot(corner[1], tip - corner[0])
    distance: Floats = normal[0] * (length * np.cos(folded) - tip) + normal[1] * length * np.sin(folded)
    return distance.astype(np.float32)


def _stripes(u: Floats, v: Floats) -> Floats:
    """Three bars with gaps as wide as they are."""
    pitch = 2 * _HALF_SIDE / 2.5
    return _overlap(_square(u, v), np.abs((v + pitch / 2) % pitch - pitch / 2) - pitch / 4)


def _checks(u: Floats, v: Floats) -> Floats:
    """Three by three cells, five of them filled."""
    cell = 2 * _HALF_SIDE / 3
    du = cell / 2 - np.abs((u + cell) % (2 * cell) - cell)
    dv = cell / 2 - np.abs((v + cell) % (2 * cell) - cell)
    filled = np.where(du * dv > 0, -1, 1) * np.minimum(np.abs(du), np.abs(dv))
    return _overlap(_square(u, v), filled)


def _crescent(u: Floats, v: Floats) -> Floats:
    return _overlap(_disc(u, v), 0.78 - np.sqrt((u - 0.42) ** 2 + v * v))


def _nested_squares(u: Floats, v: Floats) -> Floats:
    frame = np.abs(_box(u, v, 0.67, 0.67)) - 0.14
    return np.minimum(frame, _box(u, v, 0.26, 0.26))


_FIGURES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    _disc,
    _ring,
    _square,
    _triangle,
    _cross,
    _star,
    _stripes,
    _checks,
    _crescent,
    _nested_squares,
)
