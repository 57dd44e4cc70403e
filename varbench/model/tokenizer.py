"""The multi-scale VQ-VAE: images to codes of every scale and back. Names are those of the official checkpoints.

Letters: B images, C channels, h w a map's height and width, D code_dim, N places, V codes, l tokens of one scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varbench.model.fused import group_norm_silu
from varbench.model.transformer import embedding
from varbench.spec import ModelSpec, TokenizerSpec


def phi_index(scale: int, scales: int, phis: int) -> int:
    """Which shared convolution a scale takes: the one whose tick is nearest to scale/(scales-1).

    The comparison is made in the official float64 arithmetic, since some scales are ties on paper (2 and 7 of 10).
    """
    import numpy as np

    at = scale / (scales - 1) if scales > 1 else 0.0
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(edge, 1 - edge, phis)
    return int(np.argmin(np.abs(ticks - at)))


class Norm(nn.GroupNorm):
    """Over 32 groups of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self._normed(x_BChw, silu=False)

    def activated(self, x_BChw: Tensor) -> Tensor:
        """And SiLU."""
        return self._normed(x_BChw, silu=True)

    def _normed(self, x_BChw: Tensor, *, silu: bool) -> Tensor:
        if x_BChw.is_cuda:
            made = group_norm_silu(x_BChw, self.weight, self.bias, groups=self.num_groups, eps=self.eps, silu=silu)
            if made is None:
                weight, bias = self.weight.to(x_BChw.dtype), self.bias.to(x_BChw.dtype)
                made = F.group_norm(x_BChw, self.num_groups, weight, bias, self.eps)
                made = _activated(made) if silu else made
            return made
        made = self._on_cpu(x_BChw)
        return _activated(made) if silu else made

    def _on_cpu(self, x_BChw: Tensor) -> Tensor:
        # Of a small map whose channels lie innermost, torch's 16-bit kernel reads group by group, a few numbers at a time:
        # of narrow groups it is faster to lay the map out anew.
        narrow = x_BChw.shape[1] < 8 * self.num_groups and x_BChw.shape[2] * x_BChw.shape[3] < 1024
        if narrow and x_BChw.dtype == torch.bfloat16 and not x_BChw.is_contiguous():
            return super().forward(x_BChw.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x_BChw)


def _activated(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = Norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = Norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x_BChw: Tensor) -> Tensor:
        h: Tensor = self.conv1(self.norm1.activated(x_BChw))
        h = self.conv2(self.norm2.activated(h))
        shortcut: Tensor = self.nin_shortcut(x_BChw)
        return shortcut + h


class SpatialAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        batch, channels, height, width = x_BChw.shape
        q, k, v = self.qkv(self.norm(x_BChw)).flatten(2).chunk(3, dim=1)
        weights_BNN = torch.bmm(q.transpose(1, 2), k).mul(channels**-0.5).softmax(dim=2)
        h_BNC = torch.bmm(weights_BNN, v.transpose(1, 2))
        h: Tensor = self.proj_out(h_BNC.transpose(1, 2).reshape(batch, channels, height, width))
        return x_BChw + h


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        half: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return half


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        double: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return double


class Level(nn.Module):
    """Residual blocks at one resolution, the deepest with attention after each; then the way to the next resolution."""

    def __init__(self, before: int, after: int, *, blocks: int, attention: bool, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(before if i == 0 else after, after) for i in range(blocks))
        self.attn = nn.ModuleList(SpatialAttention(after) for _ in range(blocks if attention else 0))
        self.downsample = resample if isinstance(resample, Downsample) else nn.Identity()
        self.upsample = resample if isinstance(resample, Upsample) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[place](x)
        resampled: Tensor = self.upsample(self.downsample(x))
        return resampled


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return mixed


class Encoder(nn.Module):
    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__()
        widths = [spec.channels * m for m in spec.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, spec.channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[max(level - 1, 0)] if level else spec.channels,
                widths[level],
                blocks=spec.blocks,
                attention=level == last,
                resample=Downsample(widths[level]) if level != last else None,
            )
            for level in range(len(widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], spec.code_dim, 3, padding=1)

    def forward(self, x_B3hw: Tensor) -> Tensor:
        x = self.conv_in(x_B3hw)
        for level in self.down:
            x = level(x)
        latent: Tensor = self.conv_out(self.norm_out.activated(self.mid(x)))
        return latent


class Decoder(nn.Module):
    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__()
        widths = [spec.channels * m for m in spec.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(spec.code_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(level + 1, last)],
                widths[level],
                blocks=spec.blocks + 1,
                attention=level == last,
                resample=Upsample(widths[level]) if level else None,
            )
            for level in range(len(widths))
        )
        self.norm_out = Norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, f_BDhw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(f_BDhw))
        for level in reversed(self.up):
            x = level(x)
        x = self.norm_out.activated(x)
        if not x.is_cuda:
            image: Tensor = self.conv_out(x)
            return image
        # For three channels, and for eight, there is no fast kernel.
        weight = F.pad(self.conv_out.weight, (0, 0, 0, 0, 0, 0, 0, 61)).contiguous(memory_format=torch.channels_last)
        assert self.conv_out.bias is not None
        return F.conv2d(x, weight, F.pad(self.conv_out.bias, (0, 61)), padding=1)[:, :3]


class Phi(nn.Conv2d):
    """Half the map as it is, half convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h_BDhw: Tensor) -> Tensor:
        convolved: Tensor = self._conv_forward(h_BDhw.to(self.weight.dtype), self.weight, self.bias)
        return h_BDhw * 0.5 + convolved * 0.5


class SharedPhis(nn.Module):
    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels) for _ in range(count))


class Quantizer(nn.Module):
    """Codes and the running map `f_hat` that they add up to, scale by scale."""

    ema_vocab_hit_SV: Tensor

    def __init__(self, spec: TokenizerSpec, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)
        self.embedding = embedding(spec.vocabulary, spec.code_dim)
        self.quant_resi = SharedPhis(spec.phis, spec.code_dim)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.sides), spec.vocabulary))
        self._shares_of: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self.phi_of_scale = tuple(phi_index(scale, len(self.sides), spec.phis) for scale in range(len(self.sides)))

    def contribution(self, codes_Bl: Tensor, scale: int) -> Tensor:
        """What a scale's codes add to `f_hat`: look up, upsample to the last side, phi."""
        return self.spread(self.embedding(codes_Bl), scale)

    def spread(self, h_BlD: Tensor, scale: int) -> Tensor:
        """The same of vectors, those of codes or any others."""
        side, last = self.sides[scale], self.sides[-1]
        if h_BlD.is_cuda and not torch.is_grad_enabled() and scale != len(self.sides) - 1:
            # Bicubic is a sum with fixed shares, and a product is many times as fast as torch's kernel of it.
            h_BDhw = (h_BlD.transpose(1, 2) @ self._shares(side, last, h_BlD)).unflatten(2, (last, last))
            return self._phi(h_BDhw, scale)
        h_BDhw = h_BlD.transpose(1, 2).reshape(h_BlD.shape[0], -1, side, side)
        if scale != len(self.sides) - 1:
            h_BDhw = F.interpolate(h_BDhw, size=(last, last), mode="bicubic")
        return self._phi(h_BDhw, scale)

    def _phi(self, h_BDhw: Tensor, scale: int) -> Tensor:
        added: Tensor = self.quant_resi.qresi_ls[self.phi_of_scale[scale]](h_BDhw)
        return added

    def _shares(self, side: int, last: int, like: Tensor) -> Tensor:
        """What each place of the last side takes of each place of another, (side², last²)."""
        key = side, like.device, like.dtype
        if key not in self._shares_of:
            places = torch.eye(side * side).view(-1, 1, side, side)
            shares = F.interpolate(places, size=(last, last), mode="bicubic")
            self._shares_of[key] = shares.flatten(1).to(like.device, like.dtype)
        return self._shares_of[key]

    def features(self, f_hat_BDhw: Tensor, scale: int) -> Tensor:
        """`f_hat` seen at a scale's side, as (B, l, D): the transformer's input for that scale."""
        return self.shrink(f_hat_BDhw, scale).flatten(2).transpose(1, 2)

    def shrink(self, map_BDhw: Tensor, scale: int) -> Tensor:
        if scale == len(self.sides) - 1:
            return map_BDhw
        return F.interpolate(map_BDhw, size=(self.sides[scale], self.sides[scale]), mode="area")

    def places(self, map_BDhw: Tensor, scale: int) -> Tensor:
        """What the map asks for at a scale, (N, D): a row a place, image by image."""
        return self.shrink(map_BDhw, scale).permute(0, 2, 3, 1).reshape(-1, map_BDhw.shape[1])

    def nearest(self, z_ND: Tensor) -> Tensor:
        codes_VD = self.embedding.weight
        distance_NV = z_ND.square().sum(dim=1, keepdim=True) + codes_VD.square().sum(dim=1)
        return torch.addmm(distance_NV, z_ND, codes_VD.T, alpha=-2).argmin(dim=1)

    def quantise(self, f_BDhw: Tensor) -> Tensor:
        """Codes of every scale, (B, L): each scale codes what the ones before left over."""
        rest = f_BDhw.clone()
        codes = []
        for scale, side in enumerate(self.sides):
            codes_Bl = self.nearest(self.places(rest, scale)).view(rest.shape[0], side * side)
            rest = rest - self.contribution(codes_Bl, scale)
            codes.append(codes_Bl)
        return torch.cat(codes, dim=1)

    def running_maps(self, tokens_BL: Tensor) -> list[Tensor]:
        """`f_hat` after each scale, of tokens of all scales."""
        maps: list[Tensor] = []
        counts = [side * side for side in self.sides]
        for scale, codes_Bl in enumerate(tokens_BL.split(counts, dim=1)):
            added = self.contribution(codes_Bl, scale)
            maps.append(added if not maps else maps[-1] + added)
        return maps


class Tokenizer(nn.Module):
    """Encoder, quantiser and decoder under the official names."""

    def __init__(self, spec: TokenizerSpec, sides: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quantize = Quantizer(spec, sides)
        self.quant_conv = nn.Conv2d(spec.code_dim, spec.code_dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(spec.code_dim, spec.code_dim, 3, padding=1)

    @staticmethod
    def for_model(model: ModelSpec) -> Tokenizer:
        return Tokenizer(model.tokenizer, model.sides)

    def latent(self, images_B3hw: Tensor) -> Tensor:
        """Images in [-1, 1] to the map that is quantised."""
        latent: Tensor = self.quant_conv(self.encoder(images_B3hw))
        return latent

    def encode(self, images_B3hw: Tensor) -> Tensor:
        return self.quantize.quantise(self.latent(images_B3hw))

    def teacher_input(self, tokens_BL: Tensor) -> Tensor:
        """Features of every scale but the first, (B, L-1, D): what each scale sees of the ones before."""
        maps = self.quantize.running_maps(tokens_BL)
        return torch.cat([self.quantize.features(f_hat, scale + 1) for scale, f_hat in enumerate(maps[:-1])], dim=1)

    @property
    def codebook(self) -> Tensor:
        return self.quantize.embedding.weight

    def map_of(self, vectors_BLD: Tensor) -> Tensor:
        """`f_hat` of vectors of all scales."""
        counts = [side * side for side in self.quantize.sides]
        added = [self.quantize.spread(h_BlD, scale) for scale, h_BlD in enumerate(vectors_BLD.split(counts, dim=1))]
        return torch.stack(added).sum(dim=0)

    def cast_decoder_(self, dtype: torch.dtype) -> Tokenizer:
        """Store the decoder's convolutions in a type, channels innermost; norms stay float32, and so does all that encodes."""
        for module in (self.post_quant_conv, *self.decoder.modules()):
            if isinstance(module, nn.Conv2d):
                module.to(dtype)
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        return self

    def decode_map(self, f_hat_BDhw: Tensor) -> Tensor:
        """A finished `f_hat` to images in [0, 1]; the map takes the type and the layout that the decoder's weights have."""
        weight = self.post_quant_conv.weight
        image: Tensor = self.decoder(self.post_quant_conv(f_hat_BDhw.to(weight.dtype)))
        return image.to(torch.float32, memory_format=torch.contiguous_format).clamp(-1, 1).add(1).mul(0.5)

    def decode(self, tokens_BL: Tensor) -> Tensor:
        return self.decode_map(self.quantize.running_maps(tokens_BL)[-1])
