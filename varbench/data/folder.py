"""Any folder with one sub-folder of images per class, behind the same interface as the procedural set."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from varbench.base.hashing import digest, file_hash
from varbench.data.image_set import Indices, within
from varbench.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

_HELD_OUT = 10
"""Every tenth image of a class, in the order of their names' hashes, is for validation, and another tenth for tests."""
_MOST_HELD_OUT = 5_000
"""Of all classes together, for each of the two: of a million images more would be missed in training."""


@dataclass(frozen=True)
class ImageFolder:
    """Images of a folder; make it with `open_folder`. Indices follow `files`: training, then validation, then test."""

    root: Path
    side: int
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    file_labels: tuple[int, ...]
    training: range
    validation: range
    test: range

    @property
    def name(self) -> str:
        return self.root.name

    @cached_property
    def fingerprint(self) -> str:
        """Of every file's content: a folder changed in place is another data set."""
        hashed = hashlib.sha256(f"folder 1, side {self.side}".encode())
        for path in self.files:
            hashed.update(f"\n{path.relative_to(self.root).as_posix()} ".encode())
            hashed.update(bytes.fromhex(file_hash(path)))
        return hashed.hexdigest()

    def labels(self, indices: Indices) -> NDArray[np.int64]:
        return np.array([self.file_labels[index] for index in self._checked(indices)], dtype=np.int64)

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        wanted = self._checked(indices)
        out = np.empty((len(wanted), 3, self.side, self.side), np.uint8)
        for row, index in enumerate(wanted):
            out[row] = read_image(self.files[index], side=self.side)
        return out

    def crops(self, indices: Indices, *, number: int, seed: int) -> NDArray[np.uint8]:
        """Other views of the images at these indices: each number has a place of its own, drawn for each image."""
        wanted = self._checked(indices)
        out = np.empty((len(wanted), 3, self.side, self.side), np.uint8)
        for row, index in enumerate(wanted):
            drawn = np.random.RandomState([seed, number, int(index)]).random_sample(2)
            out[row] = read_crop(self.files[index], side=self.side, place=(float(drawn[0]), float(drawn[1])))
        return out

    def _checked(self, indices: Indices) -> NDArray[np.int64]:
        return within(indices, count=len(self.files), of=self.root)


def open_folder(root: str | Path, *, side: int, minimum: int = _HELD_OUT) -> ImageFolder:
    """The images below `root`, where each sub-folder is a class; fewer than `minimum` in a class are refused."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder at {root}. Give a folder with one sub-folder of images per class.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        loose = sum(path.suffix.lower() in EXTENSIONS for path in root.iterdir())
        raise UserError(
            f"{root} has no sub-folders ({loose} images lie in it directly), and each class must be a sub-folder. "
            f"Put the images of a class into {root / 'CLASS'}."
        )
    minimum = max(minimum, 3)
    most = max(1, _MOST_HELD_OUT // len(folders))
    splits: tuple[list[tuple[str, Path, int]], ...] = ([], [], [])
    for label, folder in enumerate(folders):
        files = [path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS]
        if len(files) < minimum:
            raise UserError(
                f"class {folder.name!r} of {root} has {len(files)} images, and at least {minimum} are needed."
            )
        ordered = sorted((_order(path.relative_to(root)), path, label) for path in files)
        held_out = min(max(1, len(ordered) // _HELD_OUT), most)
        splits[2].extend(ordered[:held_out])
        splits[1].extend(ordered[held_out : 2 * held_out])
        splits[0].extend(ordered[2 * held_out :])
    entries = [entry for split in splits for entry in sorted(split)]
    first, second = len(splits[0]), len(splits[0]) + len(splits[1])
    return ImageFolder(
        root=root,
        side=side,
        classes=tuple(folder.name for folder in folders),
        files=tuple(path for _, path, _ in entries),
        file_labels=tuple(label for _, _, label in entries),
        training=range(first),
        validation=range(first, second),
        test=range(second, len(entries)),
    )


def read_image(path: Path, *, side: int, sha256: str | None = None) -> NDArray[np.uint8]:
    """One image file as (3, side, side): turned upright, cropped to its middle square, resized with antialiasing. With `sha256`, a
    file of other bytes is refused."""
    with _opened(path, sha256=sha256) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    square = ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def read_crop(path: Path, *, side: int, place: tuple[float, float]) -> NDArray[np.uint8]:
    """A square of an image whose shorter side is an eighth longer, as the official training crops; `place`, in [0, 1) across and
    down, says where."""
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    shorter = round(side * 1.125)
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (int(share * (length - side + 1)) for share, length in zip(place, (width, height), strict=True))
    return np.asarray(image.crop((left, top, left + side, top + side))).transpose(2, 0, 1)


def check_readable(path: Path, *, side: int) -> None:
    """Reads the whole file, a JPEG at the least scale that `side` allows: several times as fast as `read_image`."""
    with _opened(path) as file:
        file.draft("RGB", (side, side))
        file.load()


@contextmanager
def _opened(path: Path, *, sha256: str | None = None) -> Iterator[Image.Image]:
    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path} was changed since the run began; run again, and leave it alone meanwhile.")
        with Image.open(io.BytesIO(content)) as file:
            yield file
    except UserError:
        raise
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}). Remove it, or copy it again.") from error


def _order(relative: Path) -> str:
    """An order that has nothing to do with how files are named, and is the same on every machine."""
    return digest([relative.as_posix()])
