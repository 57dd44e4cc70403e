"""Guidance and the draw of one code, as published; noise belongs to an image and a position, whatever the batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampler:
    cfg: float
    """Strength of guidance; up to 1 no unlabelled branch runs."""
    cfg_interval: int = -1
    """The last decode step, from 0, that is guided; later ones take the labelled half, though both run. -1 guides all."""
    temperature: float = 1.0
    top_k: int = 0
    """0 keeps all codes."""
    top_p: float = 1.0
    """1 keeps all codes."""

    @property
    def branches(self) -> int:
        return 2 if self.cfg > 1 else 1

    def guided(self, logits: Tensor, *, decode_step: int) -> Tensor:
        """Of labelled rows and then as many unlabelled ones; the first code, which no decode step makes, is -1."""
        if self.branches == 1:
            return logits
        labelled, null = logits.chunk(2)
        if self.cfg_interval >= 0 and decode_step > self.cfg_interval:
            return labelled
        return null + (labelled - null) * self.cfg

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        import torch

        logits = logits_BV / max(self.temperature, 1e-5)
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered, places = logits.sort(descending=True)
            chances = ordered.softmax(-1)
            # What comes before a code leaves room for it, or it goes; the likeliest stays.
            before = chances.cumsum(-1).roll(1, dims=-1)
            before[:, 0] = -torch.inf
            gone = torch.zeros_like(logits, dtype=torch.bool).scatter(1, places, before > self.top_p)
            logits = logits.masked_fill(gone, -torch.inf)
        return logits.softmax(-1)

    def draw(self, logits_BV: Tensor, noise_B: Tensor) -> Tensor:
        """The code at which the probabilities, added up, pass the noise in [0, 1)."""
        import torch

        summed = self.probabilities(logits_BV).double().cumsum(-1)
        target = noise_B[:, None] * summed[:, -1:]
        # A code of probability 0 adds nothing, so it is never the first to pass.
        return torch.searchsorted(summed, target, right=True).squeeze(1).clamp_max(logits_BV.shape[-1] - 1)


def noise_of(images: range, *, seed: int, positions: int) -> Tensor:
    """(images, positions) in [0, 1), double."""
    import torch

    return torch.stack([torch.rand(positions, generator=_stream(seed, image), dtype=torch.double) for image in images])


def _stream(seed: int, image: int) -> torch.Generator:
    import torch

    digest = hashlib.sha256(f"{seed} {image}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
