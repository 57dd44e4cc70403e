"""A data set in four idx files, as MNIST and its successors are published: small grey images and their labels."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varbench.data.image_set import Indices, within
from varbench.errors import UserError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""As they are published, packed (.gz) or not; the publishers' test images come second."""

FASHION = "fashion-mnist"
FASHION_CLASSES = (
    "t-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION_LABELS = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
"""Hash of its training labels, by which it is known: all of these sets have files of the same names and sizes."""

_HELD_OUT = 12
"""Every twelfth of the training images is for validation: 5,000 of 60,000. The publishers' test images are for tests alone."""


@dataclass(frozen=True)
class IdxSet:
    """Make it with `open_idx`. Indices follow the images: training, then validation, then test, each with its classes in turn, so
    that however many are taken from the front of one, all classes have as many."""

    name: str
    side: int
    classes: tuple[str, ...]
    grey_NHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    training: range
    validation: range
    test: range

    @cached_property
    def fingerprint(self) -> str:
        """Of what the files hold, packed or not."""
        hashed = hashlib.sha256(f"idx 1, side {self.side}, {self.training} {self.validation} {self.test}".encode())
        hashed.update(self.grey_NHW.data)
        hashed.update(self.labels_N.astype("<i8").data)
        return hashed.hexdigest()

    def labels(self, indices: Indices) -> NDArray[np.int64]:
        return self.labels_N[self._checked(indices)]

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        """The pixels as they are, black around them up to the side: nothing is blurred by another size."""
        grey = self.grey_NHW[self._checked(indices)]
        before = [(self.side - length) // 2 for length in grey.shape[1:]]
        after = [self.side - length - first for length, first in zip(grey.shape[1:], before, strict=True)]
        whole = np.pad(grey, ((0, 0), *zip(before, after, strict=True)))
        return np.repeat(whole[:, None], 3, axis=1)

    def _checked(self, indices: Indices) -> NDArray[np.int64]:
        return within(indices, count=len(self.labels_N), of=self.name)


def holds_idx(root: str | Path) -> bool:
    """Whether a folder is meant as such a set: one that lacks a file is no folder of classes either."""
    return any(_path(Path(root), name) is not None for name in FILES)


def open_idx(root: str | Path, *, side: int) -> IdxSet:
    """The set in a folder's four files; what is not whole is refused."""
    root = Path(root)
    paths = {name: _path(root, name) for name in FILES}
    if lacking := [name for name, path in paths.items() if path is None]:
        raise UserError(f"{root} lacks {', '.join(lacking)} (or the same with .gz); copy all four files there")
    read = [_read(path, dimensions=int(name.split("idx")[1][0])) for name, path in paths.items() if path is not None]
    parts = [_in_turn(root, *read[first : first + 2]) for first in (0, 2)]
    if (there := parts[0][0].shape[1:]) != parts[1][0].shape[1:] or not max(there) <= side < 2 * max(there):
        sizes = " and ".join(dict.fromkeys(" x ".join(map(str, images.shape[1:])) for images, _ in parts))
        raise UserError(f"{root} has images of {sizes} pixels, which do not fit the model's {side} x {side}")
    grey_NHW, labels_N = (np.concatenate(some) for some in zip(*parts, strict=True))
    first = len(parts[0][1]) - max(1, len(parts[0][1]) // _HELD_OUT)
    second = len(parts[0][1])
    fashion = hashlib.sha256(read[1].data).hexdigest() == FASHION_LABELS
    return IdxSet(
        name=FASHION if fashion else root.resolve().name,
        side=side,
        classes=FASHION_CLASSES if fashion else tuple(map(str, range(int(labels_N.max()) + 1))),
        grey_NHW=grey_NHW,
        labels_N=labels_N,
        training=range(first),
        validation=range(first, second),
        test=range(second, len(labels_N)),
    )


def _path(root: Path, name: str) -> Path | None:
    return next((path for path in (root / f"{name}.gz", root / name) if path.is_file()), None)


def _read(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    try:
        held = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); copy it again") from error
    begin = 4 + 4 * dimensions
    shape = tuple(int(length) for length in np.frombuffer(held[4:begin], ">u4")) if len(held) >= begin else ()
    if held[:4] != bytes((0, 0, 8, dimensions)) or len(held) != begin + int(np.prod(shape)):
        raise UserError(f"{path} is no whole idx file of bytes in {dimensions} dimensions; copy it again")
    return np.frombuffer(held, np.uint8, offset=begin).reshape(shape)


def _in_turn(
    root: Path, images_NHW: NDArray[np.uint8], labels_N: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first image of every class, the second of every class, and so on."""
    if len(images_NHW) != len(labels_N) or not len(labels_N):
        raise UserError(f"{root} has {len(images_NHW)} images for {len(labels_N)} labels; copy its files again")
    place_N = np.empty(len(labels_N), np.int64)
    for label in np.unique(labels_N):
        of_class = labels_N == label
        place_N[of_class] = np.arange(of_class.sum())
    order = np.lexsort((labels_N, place_N))
    return images_NHW[order], labels_N[order].astype(np.int64)
