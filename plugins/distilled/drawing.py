"""An image's own random numbers, whatever its batch, and codes drawn by them.

Letters: B images, L tokens of an image, l some of them, V codes, D numbers of a code's vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from varbench.spec import ModelSpec


def nearest(vectors_BnD: Tensor, codebook_VD: Tensor) -> Tensor:
    flat = vectors_BnD.flatten(0, 1)
    distances = torch.addmm(codebook_VD.square().sum(1), flat, codebook_VD.T, alpha=-2)
    return distances.argmin(1).view(vectors_BnD.shape[:2])


def drawn(chances_BlV: Tensor, uniforms_Bl: Tensor) -> Tensor:
    """The codes at which the probabilities, added up, pass a number in [0, 1)."""
    summed = chances_BlV.double().cumsum(-1)
    target = uniforms_Bl[..., None] * summed[..., -1:]
    # A code of probability 0 adds nothing, so it is never the first to pass.
    return torch.searchsorted(summed, target, right=True).squeeze(-1).clamp_max(chances_BlV.shape[-1] - 1)


def noise_of(images: Sequence[int], purpose: str, model: ModelSpec, *, device: torch.device) -> Tensor:
    """Standard normal vectors (B, L, D): an image's own, whatever the batch."""
    shape = (model.length, model.tokenizer.code_dim)
    return torch.stack([torch.randn(shape, generator=_stream(purpose, image)) for image in images]).to(device)


def uniforms_of(images: Sequence[int], purpose: str, model: ModelSpec, *, device: torch.device) -> Tensor:
    """Numbers in [0, 1), (B, L) double."""
    found = [torch.rand(model.length, generator=_stream(purpose, image), dtype=torch.double) for image in images]
    return torch.stack(found).to(device)


def _stream(purpose: str, image: int) -> torch.Generator:
    digest = hashlib.sha256(f"{purpose} {image}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
