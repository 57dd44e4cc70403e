"""What the rest of varbench asks of a data set."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = "range | list[int] | NDArray[np.integer]"


class ImageSet(Protocol):
    """Labelled square images, reached by index.

    There is no length, since a procedural set has none: the three ranges say which indices may be asked for, and they
    never overlap. Anything scored as held out comes from `test`; settings are chosen on `validation`.
    """

    @property
    def name(self) -> str:
        """What figures made with it are called after, as in FD-shapes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a place in this tuple."""

    @property
    def side(self) -> int:
        """Height and width of every image, in pixels."""

    @property
    def fingerprint(self) -> str:
        """Hash of what the images are; caches made from a set are keyed by it."""

    @property
    def training(self) -> range: ...

    @property
    def validation(self) -> range: ...

    @property
    def test(self) -> range: ...

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        """The images at these indices, (N, 3, side, side)."""

    def labels(self, indices: Indices) -> NDArray[np.int64]:
        """Their labels, (N,)."""
