"""Drawing codes: top-k, then top-p, then one uniform number per token from a counter.

The number is a function of (seed, image, scale, position) alone, so an image does not depend on the batch it is made
in, on the rank, or on the method.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varbench.model import fused

_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, a bijection of 64-bit words; int64 products wrap."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def streams(images_B: Tensor, *, seed: int) -> Tensor:
    """What the numbers of each image are drawn from, (B, 1)."""
    key = _mixed(torch.tensor(_signed(seed * 0x9E3779B97F4A7C15 + 1), device=images_B.device))
    return _mixed(key + (images_B.unsqueeze(1) + 1) * _GOLDEN)


def uniforms(streams_B1: Tensor, *, scale: int, count: int) -> Tensor:
    """One number in [0, 1) for each of a scale's `count` tokens of each image, (B, count) float32."""
    place_1l = torch.arange(count, device=streams_B1.device).unsqueeze(0) + (scale << 32)
    words = _mixed(streams_B1 ^ _mixed((place_1l + 1) * _GOLDEN))
    return _shifted(words, 40).float() * 2.0**-24


_TIES = 128
"""Codes beyond the k likeliest that are looked at too, since some may tie with the k-th."""


def filtered(logits_BlV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Logits with everything that may not be drawn at -inf. 0 switches a filter off; ties with the k-th stay."""
    vocabulary = logits_BlV.shape[-1]
    if top_k and top_p and 2 * (top_k + _TIES) <= vocabulary and logits_BlV.device.type == "cpu":
        return _filtered_among_likeliest(logits_BlV, top_k=top_k, top_p=top_p)
    return _filtered_among_all(logits_BlV, top_k=top_k, top_p=top_p)


def _filtered_among_all(logits_BlV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    if 0 < top_k < logits_BlV.shape[-1]:
        least = logits_BlV.topk(top_k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
        logits_BlV = logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    if top_p > 0:
        ordered, places = logits_BlV.sort(dim=-1)
        logits_BlV = torch.full_like(logits_BlV, -torch.inf).scatter_(-1, places, _without_tail(ordered, top_p))
    return logits_BlV


def _filtered_among_likeliest(logits_BlV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """The same without a sort of all codes. A token whose ties with the k-th go on beyond those that are looked at is done
    in full: token by token, so that none depends on the others."""
    chosen, at = logits_BlV.topk(top_k + _TIES, dim=-1, sorted=False)
    ordered, order = chosen.sort(dim=-1)
    least = ordered[..., _TIES : _TIES + 1]
    open_ended = ordered[..., 0] >= least.squeeze(-1)
    kept = _without_tail(ordered.masked_fill_(ordered < least, -torch.inf), top_p)
    made = torch.full_like(logits_BlV, -torch.inf).scatter_(-1, at.gather(-1, order), kept)
    if open_ended.any():
        made[open_ended] = _filtered_among_all(logits_BlV[open_ended], top_k=top_k, top_p=top_p)
    return made


def _without_tail(ordered: Tensor, top_p: float) -> Tensor:
    """Of logits in rising order, the least likely at -inf, as long as together they are no likelier than 1 - p."""
    tail = ordered.softmax(dim=-1).cumsum_(dim=-1) <= 1 - top_p
    tail[..., -1] = False
    return ordered.masked_fill(tail, -torch.inf)


def drawn(logits_BlV: Tensor, uniforms_Bl: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Codes (B, l) of what the filters leave; on a GPU by one kernel."""
    found = fused.drawn(logits_BlV, uniforms_Bl, top_k=top_k, top_p=top_p)
    return draw(filtered(logits_BlV, top_k=top_k, top_p=top_p), uniforms_Bl) if found is None else found


def draw(logits_BlV: Tensor, uniforms_Bl: Tensor) -> Tensor:
    """Codes (B, l) by inverting the cumulative distribution in the codebook's order."""
    cumulative = logits_BlV.softmax(dim=-1).cumsum(dim=-1)
    whole = cumulative[..., -1:]
    # Rounding must not push a draw past the last code that can be drawn.
    below = torch.nextafter(whole, torch.zeros_like(whole))
    at = torch.minimum(uniforms_Bl.unsqueeze(-1) * whole, below)
    return torch.searchsorted(cumulative, at, right=True).squeeze(-1)
