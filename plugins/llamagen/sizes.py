"""How large the networks are, and what one image costs: counted from sizes alone, without torch."""

from __future__ import annotations

from dataclasses import dataclass

STRIDE = 16
"""Pixels of image per code of the official tokenizer."""
CODES, CODE_DIM, LATENT, CHANNELS = 16384, 8, 256, (128, 128, 256, 256, 512)
"""Its codes, their width, the width of a latent, and the channels of its levels from pixels to latents."""
RESIDUALS = 2
"""Residual blocks in a level of its encoder; the decoder has one more."""
CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Size:
    """One transformer over a square of codes."""

    layers: int
    heads: int
    width: int
    side: int
    """Codes in a row of the square."""
    codes: int = CODES
    classes: int = CLASSES
    entry: int = 0
    """Numbers of a codebook's entry, where the network has one of its own."""

    @property
    def hidden(self) -> int:
        """Width inside the FFN: two thirds of four times the width, rounded up."""
        return -(-int(8 * self.width / 3) // 256) * 256

    @property
    def steps(self) -> int:
        """One for each code; the first reads the class alone."""
        return self.side * self.side

    @property
    def capacity(self) -> int:
        """Positions of the cache: class and codes, rounded up to 8."""
        return -(-(self.steps + 1) // 8) * 8

    @property
    def parameters(self) -> int:
        layer = 4 * self.width * self.width + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * layer + (self.classes + 1 + 2 * self.codes + 1) * self.width

    def macs(self, *, whole: bool) -> int:
        """Multiplications and additions of one image and guidance branch. `whole`: decode steps read the whole cache."""
        token = self.layers * (4 * self.width * self.width + 3 * self.width * self.hidden) + self.codes * self.width
        read = 1 + (self.steps - 1) * self.capacity if whole else self.steps * (self.steps + 1) // 2
        return self.steps * token + self.layers * 2 * self.width * read

    def cache_bytes(self, *, rows: int, item: int) -> int:
        return self.layers * 2 * rows * self.capacity * self.width * item


def decoder_macs(*, side: int, channels: tuple[int, ...], blocks: int, latent: int, entry: int) -> int:
    """Multiplications and additions of turning one image's codes into pixels; `entry` are those of a code's first convolution."""

    def residual(before: int, after: int) -> int:
        return 9 * before * after + 9 * after * after + (before * after if before != after else 0)

    deepest, places = channels[-1], side * side
    attention = places * 4 * deepest * deepest + 2 * places * places * deepest
    total = places * (entry + 9 * latent * deepest + 2 * residual(deepest, deepest)) + attention
    total += (blocks + 1) * attention
    before = deepest
    for level, width in reversed(list(enumerate(channels))):
        total += places * (residual(before, width) + blocks * residual(width, width))
        if level:
            places *= 4
            total += places * 9 * width * width
        before = width
    return total + places * 9 * channels[0] * 3
