"""What a scorer keeps of a row's images, a file for each group of them, so that a run that was killed goes on behind the last.

Networks look at whole groups: in a run that goes on they see the same ones, and scores are the same bit for bit.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varbench.base.whole_files import lay_there, whole_file
from varbench.quality.copies import Thumbnails
from varbench.quality.image_features import ImageFeatures
from varbench.quality.images import Images, Tokens


@dataclass(frozen=True, kw_only=True)
class Group:
    labels_N: NDArray[np.int64]
    images: Images
    """Those that are still wanted themselves: the first of the row, or all where all are kept."""
    tokens: Tokens | None
    """Of the first of the row."""
    thumbnails: Thumbnails
    pixels: NDArray[np.uint8]
    """(N, 32): a hash of each image's pixels."""
    looked: ImageFeatures | None
    """None where no network looks."""


class Groups:
    """The groups of one row; without a folder, nothing is written and nothing found. What was not there `before`, in
    nanoseconds, is not taken for an earlier process's."""

    def __init__(self, folder: Path | None, *, before: int) -> None:
        self._folder, self._before = folder, before

    def put(self, group: Group, *, first: int) -> None:
        if self._folder is None:
            return
        arrays: dict[str, NDArray[np.generic]] = {
            "labels": group.labels_N,
            "images": group.images,
            "thumbnails": group.thumbnails,
            "pixels": group.pixels,
            **({} if group.tokens is None else {"tokens": group.tokens}),
            **({} if group.looked is None else group.looked.to_arrays()),
        }
        with whole_file(self._path(first)) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take any keyword for `allow_pickle`

    def earlier(self, *, first: int, upto: int) -> Iterator[Group]:
        """Those of an earlier process, in order. Behind a file that cannot be read there are none."""
        while (group := self._read(first)) is not None and first + len(group.labels_N) <= upto:
            yield group
            first += len(group.labels_N)

    def _read(self, first: int) -> Group | None:
        if self._folder is None:
            return None
        path = self._path(first)
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            if not lay_there(path, before=self._before):
                return None
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            return Group(
                labels_N=arrays["labels"],
                images=arrays["images"],
                tokens=arrays.get("tokens"),
                thumbnails=arrays["thumbnails"],
                pixels=arrays["pixels"],
                looked=ImageFeatures.from_arrays(arrays, arrays["labels"]),
            )
        return None

    def _path(self, first: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{first:08d}.npz"
