"""Whether images are another's: repeated, or taken from those that they are compared with."""

from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.quality.images import PIECE, Images, SomeImages, pieces

SIDE = 16
"""Images are compared at this side: what is copied stays near, and a large reference is no great work."""

MOST = 10_000
"""Images of either kind that are compared."""

NEAREST = 0.001
"""So small a share of reference images has a nearer neighbour among the others than what counts as a copy."""

Thumbnails = NDArray[np.float32]
"""(N, 3 · SIDE · SIDE), in levels of 0 to 255."""


def thumbnails(images: SomeImages) -> Thumbnails:
    """Of the first `MOST`."""
    small = (
        torch.nn.functional.interpolate(torch.from_numpy(piece).float(), size=(SIDE, SIDE), mode="area").flatten(1)
        for piece in islice(pieces(images), -(-MOST // PIECE))
    )
    return torch.cat(list(small))[:MOST].numpy()


def pixel_hashes(images: Images) -> NDArray[np.uint8]:
    """(N, 32): a hash of each image's pixels."""
    found = b"".join(hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images)
    return np.frombuffer(found, np.uint8).reshape(len(images), -1)


def within_real(real: Thumbnails) -> float:
    """The distance below which reference images have next to no neighbour among themselves."""
    return float(np.quantile(_nearest(real, real, itself=True), NEAREST))


def share_copied(images: Thumbnails, real: Thumbnails, *, reach: float) -> float:
    """Share of images that are nearer to a reference image than half of that."""
    return float((_nearest(images, real) < reach / 2).mean())


def _nearest(images: Thumbnails, others: Thumbnails, *, itself: bool = False) -> NDArray[np.float32]:
    found = []
    theirs = torch.from_numpy(others)
    for start in range(0, len(images), 512):
        distances = torch.cdist(torch.from_numpy(images[start : start + 512]), theirs)
        if itself:
            rows = torch.arange(len(distances))
            distances[rows, rows + start] = torch.inf
        found.append(distances.min(dim=1).values)
    return torch.cat(found).numpy()
