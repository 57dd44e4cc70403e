"""Geometry of a model as plain frozen data: what plugins, the compiler and the cost model know of it. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from varbench.errors import UserError

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Sizes of the multi-scale VQ-VAE. The defaults are those of the official `vae_ch160v4096z32`."""

    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    code_dim: int = 32
    vocabulary: int = 4096
    phis: int = 4
    """Residual convolutions shared by the scales."""

    @property
    def stride(self) -> int:
        """Pixels of image per place of the last token map."""
        return 1 << (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Sizes of one transformer and of the tokenizer that it speaks. Scales are numbered from 0 in code."""

    name: str
    sides: tuple[int, ...]
    """Side of each scale's square token map, coarse to fine."""
    depth: int
    width: int
    heads: int
    classes: int = 1000
    shared_adaln: bool = False
    l2_attention: bool = True
    mlp_ratio: float = 4.0
    tokenizer: TokenizerSpec = TokenizerSpec()

    @property
    def scales(self) -> int:
        return len(self.sides)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(side * side for side in self.sides)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Place of each scale's first token in the sequence, and the sequence's length at the end."""
        starts = [0]
        for count in self.tokens:
            starts.append(starts[-1] + count)
        return tuple(starts)

    @property
    def length(self) -> int:
        """Tokens of an image, all scales."""
        return self.starts[-1]

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the FFN."""
        return round(self.width * self.mlp_ratio)

    @property
    def image_side(self) -> int:
        return self.sides[-1] * self.tokenizer.stride

    def scale_name(self, scale: int) -> str:
        """How a scale is called in messages and tables, counted from 1."""
        return f"scale {scale + 1} of {self.scales} ({self.sides[scale]}x{self.sides[scale]})"

    def narrower(self) -> ModelSpec:
        """A model of half the width and heads on the same tokenizer, for methods that run two."""
        if self.heads % 2:
            raise UserError(
                f"{self.name} has {self.heads} heads, so no narrower model of half its width and heads exists"
            )
        return replace(self, name=f"{self.name}-narrow", width=self.width // 2, heads=self.heads // 2)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ModelSpec:
        tokenizer = dict(data["tokenizer"])
        tokenizer["multipliers"] = tuple(tokenizer["multipliers"])
        return ModelSpec(**{**data, "sides": tuple(data["sides"]), "tokenizer": TokenizerSpec(**tokenizer)})
