"""Training images made once and kept as a memory-mapped file, keyed by what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varbench.base.places import cache_folder
from varbench.base.whole_files import require_space, whole_file
from varbench.data.image_set import ImageSet

_CHUNK = 1024


def training_images(data: ImageSet, *, count: int) -> NDArray[np.uint8]:
    """The first `count` training images (or all there are), (N, 3, side, side), mapped from the cache folder."""
    wanted = data.training[:count]
    path = cache_folder("images") / f"{data.fingerprint[:16]}-{len(wanted)}.npy"
    if not path.exists():
        _write(path, data, wanted)
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return images


def _write(path: Path, data: ImageSet, wanted: range) -> None:
    shape = (len(wanted), 3, data.side, data.side)
    require_space(path.parent, needed=int(np.prod(shape)) + 2**20, purpose="the cache of training images")
    with whole_file(path) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(wanted), _CHUNK):
            file.write(np.ascontiguousarray(data.images(wanted[start : start + _CHUNK])).data)
