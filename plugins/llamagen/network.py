"""The transformer that predicts an image's codes one after another. Names are those of the official checkpoints.

Letters: B rows, T positions, C width, H heads, c width of a head, V codes, S positions of the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import Size

EPS = 1e-5
BASE = 10_000.0
"""Of the rotary angles."""


def rotary_table(size: Size) -> Tensor:
    """Cosine and sine of each position's angles, (positions, c/2, 2): the first half of them tell the row, the other the column.

    The class comes first, and its row is zero: it has no place in the image, so that its query and key vanish, and every
    position gives it the score 0.
    """
    quarter = size.width // size.heads // 4
    speed = BASE ** -(torch.arange(quarter, dtype=torch.float32) * 2 / (2 * quarter))
    angle = torch.arange(size.side, dtype=torch.float32)[:, None] * speed
    rows, columns = angle.repeat_interleave(size.side, dim=0), angle.repeat(size.side, 1)
    angles = torch.cat([rows, columns], dim=1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(1, *table.shape[1:]), table])


def rotated(x_BTHc: Tensor, turn_Tc2: Tensor) -> Tensor:
    """Neighbouring numbers are a point in the plane, turned by the position's angle; in float32."""
    first, second = x_BTHc.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn_Tc2[:, None].unbind(-1)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x_BTHc.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * self.weight


class Cache(NamedTuple):
    """Keys and values of one layer, (B, H, S, c) each, made once for all steps."""

    keys: Tensor
    values: Tensor


class Reading(NamedTuple):
    """What one decode step reads of the cache. Of fixed shapes where `mask` is given, so that it can be captured."""

    position: Tensor
    """(1,), where the step writes."""
    reach: int
    """Entries it reads."""
    mask: Tensor | None
    """(1, 1, 1, reach), which of these are there already; None where all are."""


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.wqkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.wo = nn.Linear(size.width, size.width, bias=False)

    def forward(self, x_BTC: Tensor, turn: Tensor, cache: Cache | None, reading: Reading | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.wqkv(x_BTC).chunk(3, dim=-1))
        q, k, v = rotated(q, turn).transpose(1, 2), rotated(k, turn).transpose(1, 2), v.transpose(1, 2)
        if cache is None or reading is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            cache.keys.index_copy_(2, reading.position, k)
            cache.values.index_copy_(2, reading.position, v)
            k, v = cache.keys[:, :, : reading.reach], cache.values[:, :, : reading.reach]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=reading.mask)
        out: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.w1 = nn.Linear(size.width, size.hidden, bias=False)
        self.w3 = nn.Linear(size.width, size.hidden, bias=False)
        self.w2 = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention = Attention(size)
        self.feed_forward = FeedForward(size)
        self.attention_norm = RMSNorm(size.width)
        self.ffn_norm = RMSNorm(size.width)

    def forward(self, x: Tensor, turn: Tensor, cache: Cache | None, reading: Reading | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, cache, reading)
        fed: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return fed


class ClassTable(nn.Module):
    """A row for each class, and a last one for none."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(size.classes + 1, size.width)


class Network(nn.Module):
    turn: Tensor
    codebook: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.cls_embedding = ClassTable(size)
        self.tok_embeddings = nn.Embedding(size.codes, size.width)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.width)
        self.output = nn.Linear(size.width, size.codes, bias=False)
        if size.entry:
            self.register_buffer("codebook", torch.zeros(size.codes, size.entry))

    @staticmethod
    def empty(size: Size, *, device: torch.device, dtype: torch.dtype) -> Network:
        """To be filled. On the way torch draws no weights of its own, which would take long, and from everybody's stream."""
        with torch.device("meta"):
            network = Network(size)
        return network.to(dtype).to_empty(device=device).place_()

    def place_(self) -> Network:
        """Make the table of angles, where the weights are: it is no weight, and stays in float32."""
        self.turn = rotary_table(self.size).to(self.output.weight.device)
        return self

    def initialise_(self, generator: torch.Generator) -> Network:
        """Official initial values, but for the output: official ones are zero there, and every code would be as likely."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(std=0.02, generator=generator)
        return self

    def caches(self, rows: int) -> list[Cache]:
        like = self.output.weight
        shape = (rows, self.size.heads, self.size.capacity, self.size.width // self.size.heads)
        return [Cache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def forward(self, labels_B: Tensor, codes_BT: Tensor) -> Tensor:
        """Logits (B, T + 1, V) in float32 of each code, given the class and the codes before it; the last is of the next."""
        x = torch.cat([self.cls_embedding.embedding_table(labels_B)[:, None], self.tok_embeddings(codes_BT)], dim=1)
        turn = self.turn[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, turn, None, None)
        return self._logits(x)

    def first(self, labels_B: Tensor, caches: list[Cache]) -> Tensor:
        """Logits (B, V) of the first code, of the class alone."""
        start = torch.zeros(1, dtype=torch.long, device=labels_B.device)
        return self._step(self.cls_embedding.embedding_table(labels_B), caches, Reading(start, 1, None))

    def step(self, codes_B: Tensor, caches: list[Cache], reading: Reading) -> Tensor:
        """Logits (B, V) of the next code, of the one that stands at `reading.position`."""
        return self._step(self.tok_embeddings(codes_B), caches, reading)

    def _step(self, x_BC: Tensor, caches: list[Cache], reading: Reading) -> Tensor:
        x, turn = x_BC[:, None], self.turn.index_select(0, reading.position)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, turn, cache, reading)
        return self._logits(x)[:, 0]

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.norm(x))
        return logits.float()
