"""From codes to pixels: the decoder of the official tokenizer VQ-16. Names are those of its checkpoint.

Letters: B images, C channels, h w a map's height and width, N places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import CHANNELS, CODE_DIM, CODES, LATENT, RESIDUALS


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        mixed: Tensor = self.nin_shortcut(x) + h
        return mixed


class PlaceAttention(nn.Module):
    """Every place of the map reads all others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (one(h).flatten(2).transpose(1, 2) for one in (self.q, self.k, self.v))
        weights_BNN = torch.bmm(q, k.transpose(1, 2)).mul(x.shape[1] ** -0.5).softmax(dim=-1)
        mixed: Tensor = x + self.proj_out(torch.bmm(weights_BNN, v).transpose(1, 2).reshape(x.shape))
        return mixed


class Doubled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


class Level(nn.Module):
    def __init__(self, before: int, after: int, *, deepest: bool, last: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(Residual(before if place == 0 else after, after) for place in range(RESIDUALS + 1))
        self.attn = nn.ModuleList(PlaceAttention(after) for _ in range(RESIDUALS + 1 if deepest else 0))
        self.upsample = nn.Identity() if last else Doubled(after)

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[place](x)
        larger: Tensor = self.upsample(x)
        return larger


class Decoder(nn.Module):
    """Levels stand in the order in which they run, the deepest first."""

    def __init__(self, channels: Sequence[int], latent: int) -> None:
        super().__init__()
        deepest, outer = channels[-1], len(channels) - 1
        self.conv_in = nn.Conv2d(latent, deepest, 3, padding=1)
        self.mid = nn.ModuleList([Residual(deepest, deepest), PlaceAttention(deepest), Residual(deepest, deepest)])
        running = list(reversed(channels))
        self.conv_blocks = nn.ModuleList(
            Level(running[max(0, place - 1)], width, deepest=place == 0, last=place == outer)
            for place, width in enumerate(running)
        )
        self.norm_out = norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for module in (*self.mid, *self.conv_blocks):
            x = module(x)
        pixels: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return pixels


class Codebook(nn.Module):
    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)


class Pixels(nn.Module):
    """Codebook, 1x1 convolution and decoder; the encoder is not needed to make images."""

    def __init__(
        self, *, channels: Sequence[int] = CHANNELS, codes: int = CODES, code_dim: int = CODE_DIM, latent: int = LATENT
    ) -> None:
        super().__init__()
        self.quantize = Codebook(codes, code_dim)
        self.post_quant_conv = nn.Conv2d(code_dim, latent, 1)
        self.decoder = Decoder(channels, latent)

    def forward(self, codes_BN: Tensor, *, side: int) -> Tensor:
        """Images in [0, 1] of `side` pixels. Codes are looked up at length 1; another side than their own is bicubic."""
        directions = F.normalize(self.quantize.embedding.weight, dim=-1)[codes_BN]
        square = round(codes_BN.shape[1] ** 0.5)
        pixels: Tensor = self.decoder(self.post_quant_conv(directions.transpose(1, 2).unflatten(2, (square, square))))
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic")
        return pixels.add(1).mul(0.5).clamp(0, 1)
