"""Training images as tokens in a folder of shards, made once: several crops an image, by several processes, and killed at any time
they go on where they were. A folder stands for the images that it was made of.

A shard is an array of one row a crop, its label and its tokens; the last one holds images that are never trained on. Beside each
lies its sha256, as `sha256sum` writes it, and all are compared when the folder is opened: of ImageNet they are 1.7 GB a crop,
which take a second or a few, and which a training's key has to be hashed of anyway.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base.hashing import digest, file_hash
from varbench.base.whole_files import require_space, write_whole
from varbench.data.folder import ImageFolder
from varbench.data.image_set import ImageSet, Indices
from varbench.errors import UserError
from varbench.model.tokenizer import Tokenizer
from varbench.spec import ModelSpec
from varbench.train import evaluation
from varbench.train.tokens import TokenSet, tokens_in, weights_hash

MANIFEST = "tokens.json"
SHARD = 1024
"""Images of a shard."""
_AT_ONCE = 64
_LARGEST_LABEL = 1 << 16


def write_shards(
    folder: Path,
    data: ImageSet,
    tokenizer: Tokenizer,
    *,
    model: ModelSpec,
    images: int | None = None,
    crops: int = 1,
    seed: int = 0,
    rank: int = 0,
    count: int = 1,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Makes the shards that fall to this process and are not there yet, of so many training images or all. `progress` hears how
    many images of them are done."""
    if crops > 1 and not isinstance(data, ImageFolder):
        raise UserError(f"{data.name} has whole images only; leave --crops out")
    if len(data.classes) > _LARGEST_LABEL:
        raise UserError(f"{data.name} has {len(data.classes)} classes, and shards hold {_LARGEST_LABEL:,} at most")
    count_of = len(data.training) if images is None else min(images, len(data.training))
    told = _manifest(data, tokenizer, model, images=count_of, crops=crops, seed=seed)
    _begin(folder, told)
    pieces = _pieces(told)
    mine = range(rank, len(pieces), count)
    lacking = {place for place in mine if not _complete(folder, place)}
    rows = sum(len(pieces[place]) for place in lacking) * crops
    require_space(folder, needed=2 * rows * (model.length + 1) + 2**20, purpose="the folder of tokens")
    done = 0
    for place in mine:
        if place in lacking:
            indices = [_index(data, number, told) for number in pieces[place]]
            views = _views(told, place, pieces)
            shard = _shard(data, tokenizer, indices, views=views, seed=seed, length=model.length)
            write_whole(_path(folder, place), shard)
            told_hash = f"{hashlib.sha256(shard).hexdigest()}  {_path(folder, place).name}\n"
            write_whole(_hash_path(folder, place), told_hash.encode())
        done += len(pieces[place])
        progress(done)


def open_tokens(folder: str | Path) -> TokenFolder:
    """A whole folder; what lacks or is damaged is said."""
    folder = Path(folder)
    try:
        told: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no folder of tokens ({error}); `varbench tokens` makes one") from error
    pieces, shards, hashes = _pieces(told), [], []
    if lacking := sum(not _complete(folder, place) for place in range(len(pieces))):
        raise UserError(f"{folder} lacks {lacking} of {len(pieces)} shards; run the same `varbench tokens` again")
    for place, piece in enumerate(pieces):
        path, written = _path(folder, place), _hash_path(folder, place).read_text().split()
        hashes.append(file_hash(path))
        shard = np.load(path, mmap_mode="r", allow_pickle=False) if hashes[-1] in written else None
        shape = (len(piece) * _views(told, place, pieces), told["length"] + 1)
        if shard is None or shard.shape != shape:
            raise UserError(f"{path} is not what was written there; remove it, and run `varbench tokens` again")
        shards.append(shard)
    fingerprint = digest([json.dumps(told, sort_keys=True), *hashes])
    return TokenFolder(root=folder, told=told, shards=tuple(shards), fingerprint=fingerprint)


@dataclass(frozen=True)
class TokenFolder:
    """A data set of which only tokens are there."""

    root: Path
    told: dict[str, Any]
    shards: tuple[NDArray[np.uint16], ...]
    fingerprint: str

    @property
    def name(self) -> str:
        return str(self.told["data"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.told["classes"])

    @property
    def side(self) -> int:
        return int(self.told["side"])

    @property
    def training(self) -> range:
        return range(sum(len(shard) for shard in self.shards[:-1]))

    @property
    def validation(self) -> range:
        return range(len(self.training), len(self.training) + len(self.shards[-1]))

    @property
    def test(self) -> range:
        return range(0)

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        raise UserError(f"{self.root} holds tokens and no images; give the images by --data")

    def labels(self, indices: Indices) -> NDArray[np.int64]:
        return _Rows(self, indices)[slice(None), 0].astype(np.int64)

    def token_set(self, indices: Indices, *, tokenizer: Tokenizer, model: ModelSpec) -> TokenSet:
        """Of another tokenizer's or other scales' tokens nothing can be learned, and they are refused."""
        if self.told["tokenizer"] != weights_hash(tokenizer) or self.told["sides"] != list(model.sides):
            raise UserError(
                f"{self.root} holds tokens of tokenizer {self.told['tokenizer'][:8]} at scales {self.told['sides']}, and "
                f"{model.name} has {weights_hash(tokenizer)[:8]} at {list(model.sides)}; make them anew: varbench tokens"
            )
        key = digest([self.fingerprint, str(indices)])
        return TokenSet(tokens_NL=_Tokens(self, indices), labels_N=self.labels(indices), key=key)


class _Rows:
    """Rows of all shards, by number."""

    def __init__(self, folder: TokenFolder, indices: Indices) -> None:
        self._folder, self._indices = folder, np.asarray(indices, dtype=np.int64)
        self._ends = np.cumsum([len(shard) for shard in folder.shards])

    def __getitem__(self, place: tuple[Any, Any]) -> NDArray[np.uint16]:
        rows, columns = place
        wanted = self._indices[rows]
        width = len(np.arange(self._folder.told["length"] + 1)[columns].reshape(-1))
        found = np.empty((len(wanted), width), np.uint16)
        shards = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            begin = self._ends[shard] - len(self._folder.shards[shard])
            found[here] = self._folder.shards[shard][wanted[here] - begin][:, columns].reshape(-1, width)
        return found[:, 0] if isinstance(columns, int) else found


class _Tokens(_Rows):
    """Their tokens, as if they were one array (N, L)."""

    def __getitem__(self, rows: Any) -> NDArray[np.uint16]:
        return super().__getitem__((rows, slice(1, None)))


def _manifest(
    data: ImageSet, tokenizer: Tokenizer, model: ModelSpec, *, images: int, crops: int, seed: int
) -> dict[str, Any]:
    if isinstance(data, ImageFolder):  # by name and size: reading every file twice would take as long as the tokens
        files = digest(f"{path.relative_to(data.root).as_posix()} {path.stat().st_size}" for path in data.files)
    else:
        files = data.fingerprint
    return {
        "format": 1,
        "data": data.name,
        "files": files,
        "classes": list(data.classes),
        "side": data.side,
        "tokenizer": weights_hash(tokenizer),
        "sides": list(model.sides),
        "length": model.length,
        "images": images,
        "held_out": min(evaluation.IMAGES, len(data.validation)),
        "crops": crops,
        "seed": seed,
    }


def _begin(folder: Path, told: dict[str, Any]) -> None:
    place = folder / MANIFEST
    if not place.exists():
        write_whole(place, json.dumps(told).encode())
    there = json.loads(place.read_text())
    for name, wanted in told.items():
        if there.get(name) != wanted:
            raise UserError(
                f"{folder} holds tokens with {name} {_short(there.get(name))}, and {_short(wanted)} was asked for; what is "
                "there stays: give another --out"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _pieces(told: dict[str, Any]) -> list[range]:
    """Images of each shard by their number; the held-out ones come last."""
    images = told["images"]
    trained = [range(first, min(first + SHARD, images)) for first in range(0, images, SHARD)]
    return [*trained, range(images, images + told["held_out"])]


def _views(told: dict[str, Any], place: int, pieces: list[range]) -> int:
    """Crops of an image in a shard; those that are held out have one."""
    return 1 if place == len(pieces) - 1 else int(told["crops"])


def _index(data: ImageSet, number: int, told: dict[str, Any]) -> int:
    return data.training[number] if number < told["images"] else data.validation[number - told["images"]]


def _path(folder: Path, place: int) -> Path:
    return folder / f"{place:05d}.npy"


def _hash_path(folder: Path, place: int) -> Path:
    return _path(folder, place).with_suffix(".sha256")


def _complete(folder: Path, place: int) -> bool:
    return _path(folder, place).exists() and _hash_path(folder, place).exists()


def _shard(data: ImageSet, tokenizer: Tokenizer, indices: list[int], *, views: int, seed: int, length: int) -> bytes:
    rows = np.empty((len(indices), views, length + 1), np.uint16)
    rows[:, :, 0] = data.labels(indices)[:, None]
    for view in range(views):
        for first in range(0, len(indices), _AT_ONCE):
            some = indices[first : first + _AT_ONCE]
            images = data.images(some)
            if view:
                assert isinstance(data, ImageFolder)
                images = data.crops(some, number=view, seed=seed)
            rows[first : first + len(some), view, 1:] = tokens_in(torch.from_numpy(images), tokenizer)
    file = io.BytesIO()
    np.save(file, rows.reshape(-1, length + 1))
    return file.getvalue()
