"""Tokens of a data set's images, made once and kept as a memory-mapped file, keyed by the data and the tokenizer's weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from varbench.base.display import Display, unseen
from varbench.base.hashing import digest
from varbench.base.places import cache_folder
from varbench.base.turns import one_at_a_time
from varbench.base.whole_files import require_space, whole_file
from varbench.data.image_set import ImageSet, Indices
from varbench.model.tokenizer import Tokenizer
from varbench.spec import ModelSpec
from varbench.train.progress import TOKENS, Progress, followed

_CHUNK = 64


class TokenRows(Protocol):
    """Tokens (N, L) by rows: an array, or what is as good as one."""

    def __getitem__(self, rows: Any) -> NDArray[np.uint16]: ...


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Tokens of some images and their labels."""

    tokens_NL: TokenRows
    labels_N: NDArray[np.int64]
    key: str
    """Hash of the data's recipe, the tokenizer's weights and the indices."""

    def __len__(self) -> int:
        return len(self.labels_N)


@runtime_checkable
class OfTokens(Protocol):
    """A data set of which only tokens are there."""

    def token_set(self, indices: Indices, *, tokenizer: Tokenizer, model: ModelSpec) -> TokenSet: ...


def tokens_of(
    data: ImageSet,
    tokenizer: Tokenizer,
    *,
    model: ModelSpec,
    indices: range,
    display: Display | None = None,
) -> TokenSet:
    """Tokens of the images at `indices`, from the cache folder where they were made before."""
    display = display or unseen()
    if isinstance(data, OfTokens):
        display.spare(TOKENS, len(indices))
        return data.token_set(indices, tokenizer=tokenizer, model=model)
    key = digest([f"{data.fingerprint} {weights_hash(tokenizer)} {model.sides} {indices}"])
    path = cache_folder("tokens") / f"{key[:32]}.npy"
    if not path.exists():
        # Recipes that train side by side want the same ones.
        waiting = display.waiting(f"tokens of {data.name} are being made by another process; waiting for them")
        with one_at_a_time(path.with_suffix(".lock"), while_waiting=waiting):
            if not path.exists():
                with followed(display, TOKENS, data.name, steps=len(indices)) as progress:
                    _write(path, data, tokenizer, indices, length=model.length, progress=progress)
    display.spare(TOKENS, len(indices))
    return TokenSet(tokens_NL=np.load(path, mmap_mode="r"), labels_N=data.labels(indices), key=key)


def _write(
    path: Path, data: ImageSet, tokenizer: Tokenizer, indices: range, *, length: int, progress: Progress
) -> None:
    shape = (len(indices), length)
    require_space(path.parent, needed=2 * shape[0] * shape[1] + 2**20, purpose="the cache of training tokens")
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": shape})
        for start in range(0, len(indices), _CHUNK):
            images = torch.from_numpy(data.images(indices[start : start + _CHUNK]))
            file.write(tokens_in(images, tokenizer).data)
            progress(min(start + _CHUNK, len(indices)), {})


def weights_hash(module: nn.Module) -> str:
    """Hash of all parameters, by name and value."""
    hashed = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        hashed.update(f"{name} {tuple(parameter.shape)}".encode())
        hashed.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return hashed.hexdigest()


def tokens_in(pixels: torch.Tensor, tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """Tokens of images (N, 3, side, side) in bytes."""
    images = pixels.to(tokenizer.quant_conv.weight.device)
    # float32 always: the tokens must not depend on what the machine is fast at.
    with torch.inference_mode():
        codes_NL = tokenizer.encode(images.float() / 127.5 - 1)
    return np.ascontiguousarray(codes_NL.cpu().numpy().astype("<u2"))
