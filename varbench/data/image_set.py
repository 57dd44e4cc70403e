"""What the rest of varbench asks of a data set."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from varbench.errors import UserError

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


def within(indices: Indices, *, count: int, of: object) -> NDArray[np.int64]:
    """The indices as an array; those that a set of so many images does not have are refused."""
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < count):
        raise UserError(
            f"{of} has the images 0 to {count - 1}, and {int(wanted.min())} to {int(wanted.max())} was asked for. "
            "Take indices from its ranges."
        )
    return wanted
