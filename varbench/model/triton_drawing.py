"""The drawing of codes in one pass over memory on a GPU. Triton.

Imported where a GPU computes and nowhere else. The plain form lies in `engine/sampler.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from varbench.model.triton_kernels import kernel


def drawn(logits_BlV: Tensor, uniforms_Bl: Tensor, *, top_k: int, top_p: float) -> Tensor:
    batch, count, vocabulary = logits_BlV.shape
    codes_Bl = torch.empty((batch, count), dtype=torch.long, device=logits_BlV.device)
    _drawn[(batch * count,)](
        logits_BlV.contiguous(),
        uniforms_Bl.contiguous(),
        codes_Bl,
        vocabulary,
        top_k,
        1 - top_p,
        K=0 < top_k < vocabulary,
        P=top_p > 0,
        BLOCK=triton.next_power_of_2(vocabulary),
        num_warps=4,
    )
    return codes_Bl


@kernel
def _middle(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Rounded up, and never out of range."""
    return (low | high) - ((low ^ high) >> 1)


@kernel
def _narrowed(order: tl.tensor, low: tl.tensor, high: tl.tensor, turn: tl.tensor) -> tuple[tl.tensor, ...]:
    """The range after a turn; from time to time it is drawn in to the logits that lie at its ends, which costs two turns and is
    the end where a range of many numbers holds one logit."""
    if turn % 4 == 3 and turn > 8:
        low = tl.min(tl.where(order >= low, order, high), axis=0)
        high = tl.max(tl.where(order <= high, order, low), axis=0)
    return low, high, turn + 1


@kernel
def _drawn(
    logits: tl.tensor,
    uniforms: tl.tensor,
    codes: tl.tensor,
    vocabulary: tl.tensor,
    top_k: tl.tensor,
    least_share: tl.tensor,
    K: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Of a token: what the k-th likeliest logit is, and up to which one the unlikely are left out, is found by halving the range
    of float32 numbers, which are ordered as their bits are, until one logit is left in it. Nothing is sorted."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < vocabulary
    logit = tl.load(logits + token * vocabulary + at, mask=inside, other=-float("inf"))
    most = tl.max(logit, axis=0)
    broken = tl.sum(((logit != logit) | (logit == float("inf"))).to(tl.int32), axis=0) > 0
    bits = logit.to(tl.int32, bitcast=True)
    order = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    highest, lowest = tl.max(order, axis=0), tl.min(order, axis=0)
    kept = inside
    least = lowest  # that may be drawn
    if K:
        low, high, turn = lowest, highest, 0
        while low < high:
            middle = _middle(low, high)
            there = tl.sum((order >= middle).to(tl.int32), axis=0)
            low = tl.where(there >= top_k, middle, low)
            high = tl.where(there > top_k, high, tl.where(there == top_k, middle, tl.maximum(middle - 1, low)))
            low, high, turn = _narrowed(order, low, high, turn)
        kept = inside & (order >= low)
        least = low
    mass = tl.where(kept, tl.exp(logit - most), 0.0)
    if P:
        spare = least_share * tl.sum(mass, axis=0)  # that may be left out
        low, high, turn = least, highest, 0
        while low < high:
            middle = _middle(low, high)
            small = tl.sum(tl.where(order < middle, mass, 0.0), axis=0) <= spare
            low = tl.where(small, middle, low)
            high = tl.where(small, high, tl.maximum(middle - 1, low))
            low, high, turn = _narrowed(order, low, high, turn)
        # All below go. Of those that are as likely as the next, the first ones, as long as there is room: of one there is none.
        alike = kept & (order == low)
        kept = kept & (order >= low)
        number = tl.sum(alike.to(tl.int32), axis=0)
        if number > 1:
            below = tl.sum(tl.where(order < low, mass, 0.0), axis=0)
            place = tl.cumsum(alike.to(tl.int32), axis=0)
            each = tl.max(tl.where(alike, mass, 0.0), axis=0)
            # The likeliest stays whatever the share.
            goes = alike & (below + place * each <= spare) & ((low < highest) | (place < number))
            kept = kept & (goes == 0)
        mass = tl.where(kept, mass, 0.0)
    # Sums in parallel do not always rise: where there is no mass they may be larger than at the last code that has some.
    kept = kept & (mass > 0)
    upto = tl.cumsum(mass, axis=0)
    whole = tl.max(tl.where(kept, upto, 0.0), axis=0)
    # The next number below, so that rounding does not lead past the last code.
    below_whole = (whole.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    aim = tl.minimum(tl.load(uniforms + token) * whole, below_whole)
    code = tl.min(tl.where(kept & (upto > aim), at, vocabulary), axis=0)
    tl.store(codes + token, tl.where(broken, vocabulary, code).to(tl.int64))
