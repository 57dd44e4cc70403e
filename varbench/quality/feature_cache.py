"""Arrays kept between runs, keyed by the content they were made from, so that no name can ever bring back the wrong ones.

torch-fidelity and clean-fid key their caches by a name that the caller chooses, and clean-fid writes into its own
installed package. Neither cache is used: what they would keep is kept here, under the XDG cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varbench.base.hashing import digest, file_hash
from varbench.base.places import cache_folder
from varbench.base.whole_files import lay_there, whole_file

Arrays = dict[str, NDArray[Any]]


def content_hash(images: NDArray[np.uint8]) -> str:
    """Hash of pixels and shape, in pieces, so that a large array is not copied."""
    hashed = hashlib.sha256(repr(images.shape).encode())
    for start in range(0, len(images), 1024):
        hashed.update(np.ascontiguousarray(images[start : start + 1024]).data)
    return hashed.hexdigest()


_WRITTEN: dict[Path, str] = {}
"""Hashes of the files that this process wrote."""


def cached_arrays(*inputs: str, compute: Callable[[], Arrays], before: int | None = None) -> Arrays:
    """What `compute` returns, from the cache where these inputs were seen before. A torn file is made again; so is one that did
    not lie there `before`, in nanoseconds since 1970, if that is given and another process wrote it."""
    key = digest(inputs)
    path = cache_folder("features") / f"{key}.npz"
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
        if before is None or lay_there(path, before=before) or file_hash(path) == _WRITTEN.get(path):
            with np.load(path) as stored:
                return {name: stored[name] for name in stored.files}
    arrays = compute()
    # A full disk costs the cache, not the run.
    with contextlib.suppress(OSError):
        with whole_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take any keyword for `allow_pickle`
        _WRITTEN[path] = file_hash(path)
    return arrays
