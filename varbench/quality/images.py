"""Images on their way to be scored: floats to bytes, PNG files, and the `.npz` of the ADM evaluation suite."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from varbench.base.hashing import digest, file_hash
from varbench.base.whole_files import whole_file
from varbench.data.folder import read_image
from varbench.errors import UserError, WrongOutputError

Images = NDArray[np.uint8]
"""(N, 3, S, S)."""

Tokens = NDArray[np.int64]
"""(N, L)."""

Labels = NDArray[np.int64]
"""(N,)."""


PIECE = 256
"""Images of a reference that are held at once."""


class FolderImages:
    """Images of files, read when a part of them is asked for: 50,000 of 256 pixels are 10 GB. A file that is not what it was is
    refused."""

    def __init__(self, paths: Sequence[Path], *, side: int) -> None:
        self._files = [(path, file_hash(path)) for path in paths]
        self._side = side
        self.shape = (len(paths), 3, side, side)

    @property
    def sha256(self) -> str:
        return digest([str(self._side), *(sha256 for _, sha256 in self._files)])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, part: slice) -> Images:
        return np.stack([read_image(path, side=self._side, sha256=sha256) for path, sha256 in self._files[part]])


SomeImages = Images | FolderImages


def pieces(images: SomeImages) -> Iterator[Images]:
    for start in range(0, len(images), PIECE):
        yield images[start : start + PIECE]


def check_images(images: NDArray[np.generic], *, what: str, expected: int | None = None) -> Images:
    """`images` unchanged if they are (N, 3, S, S) bytes and as many as expected, else an error with both numbers."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"{what} must be uint8 of shape (N, 3, S, S), and they are {images.dtype} of shape {images.shape}. "
            "`varbench.quality.to_uint8` makes them from floats in [0, 1]."
        )
    if expected is not None and len(images) != expected:
        raise UserError(f"{what}: {len(images)} images, and {expected} were asked for. Generate them all, then score.")
    return images.astype(np.uint8, copy=False)


def write_made(file: IO[bytes], images: Images, tokens: Tokens | None) -> None:
    """Images as a row made them, with the tokens they came from where it has any."""
    arrays = {"images": images} if tokens is None else {"images": images, "tokens": tokens}
    np.savez(file, **arrays)


def read_made(path: str | Path, *, sha256: str | None = None) -> tuple[Images, Tokens | None]:
    """With `sha256`, a file of other bytes is refused; those that were hashed are those that are read."""
    content = Path(path).read_bytes()
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise WrongOutputError(f"images that were handed over have the hash {found[:12]}, and {sha256[:12]} was said")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return stored["images"], stored["tokens"] if "tokens" in stored.files else None


def write_png(folder: str | Path, images: Images, *, first: int = 0) -> None:
    """One `000000.png` per image, numbered from `first`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images, first):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
            folder / f"{place:06d}.png", compress_level=1
        )


@contextlib.contextmanager
def samples_npz(path: str | Path, *, count: int, side: int) -> Iterator[Callable[[Images], None]]:
    """Takes samples piece by piece, for the ADM suite: `arr_0`, uint8 (N, S, S, 3). The file is there once it is whole."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    with (
        whole_file(Path(path)) as whole,
        zipfile.ZipFile(whole, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)

        def take(images: Images) -> None:
            file.write(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).data)

        yield take


def write_samples_npz(path: str | Path, images: Images) -> None:
    """All samples at once, in pieces."""
    with samples_npz(path, count=len(images), side=images.shape[-1]) as take:
        for start in range(0, len(images), 256):
            take(images[start : start + 256])


class KeptImages:
    """All images of a row, kept for whoever wants them: an `.npz` for the ADM suite, or a folder of PNG files."""

    def __init__(self, path: Path, *, count: int, side: int) -> None:
        self._path, self._taken, self._open = path, 0, contextlib.ExitStack()
        self._npz: Callable[[Images], None] | None = None
        if path.suffix == ".npz":
            self._npz = self._open.enter_context(samples_npz(path, count=count, side=side))
        else:
            self._partial = path.with_name(f".{path.name}.partial")
            shutil.rmtree(self._partial, ignore_errors=True)

    def take(self, images: Images) -> None:
        if self._npz is not None:
            self._npz(images)
        else:
            write_png(self._partial, images, first=self._taken)
        self._taken += len(images)

    def end(self) -> None:
        """All were taken, and they get their name."""
        self._open.close()
        if self._npz is None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._partial.replace(self._path)

    def give_up(self) -> None:
        """The row did not come to its end, and nothing stays."""
        if self._npz is None:
            shutil.rmtree(self._partial, ignore_errors=True)
        with contextlib.suppress(InterruptedError):
            self._open.__exit__(InterruptedError, InterruptedError(), None)


def kept_images(path: Path, *, at_once: int) -> Iterator[Images]:
    """What `KeptImages` kept, piece by piece."""
    if path.is_dir():
        names = sorted(path.glob("*.png"))
        for start in range(0, len(names), at_once):
            yield np.stack([np.asarray(Image.open(name)).transpose(2, 0, 1) for name in names[start : start + at_once]])
        return
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        np.lib.format.read_magic(file)
        (count, *shape), _, _ = np.lib.format.read_array_header_1_0(file)
        for start in range(0, count, at_once):
            size = min(at_once, count - start)
            content = np.frombuffer(file.read(size * int(np.prod(shape))), np.uint8)
            yield content.reshape(size, *shape).transpose(0, 3, 1, 2)


def read_npz(path: str | Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of an `.npz`; nothing in it is ever unpickled."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"no file at {path}. Give the path of an .npz in the ADM suite's format.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path} is not a readable .npz ({error}). Copy or download it again.") from error


def channels_first(images: NDArray[np.generic], path: str | Path) -> Images:
    """An `arr_0` (N, S, S, 3) as (N, 3, S, S)."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"arr_0 of {path} must have the shape (N, S, S, 3), and it has {images.shape}.")
    return check_images(images.transpose(0, 3, 1, 2), what=f"arr_0 of {path}")
