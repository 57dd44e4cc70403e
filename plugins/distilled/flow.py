"""From noise to a code: a flow that always ends at the same code for the same noise, and over all noise at each as often as the
teacher's probabilities say.

The straight path from noise e to a code's vector c is x = (1 - t) c + t e, from t = 1 to 0. At a place on it, codes weigh
p exp(-|x - (1 - t) c|^2 / 2 t^2), and the mean m of their vectors so weighed gives the velocity (x - m) / t. We follow
y = x / (1 - t) over u = t / (1 - t), which only changes the clock: y = c + u e, dy / d log u = y - m.

Letters: B images, l tokens of a scale, N tokens, V codes, D numbers of a code's vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 24
FIRST, LAST = 32.0, 1 / 16
"""Where the steps, even in log u, begin and end, in units of the codes' own spread. Before the first, codes weigh what they are
likely; after the last, one has all the weight."""


def spread_of(codebook_VD: Tensor) -> float:
    """The noise's standard deviation: the codes' own, so that neither drowns the other."""
    return float(codebook_VD.square().mean().sqrt())


def codes_of(logits_NV: Tensor, noise_ND: Tensor, codebook_VD: Tensor, *, steps: int = STEPS) -> Tensor:
    """The codes (N) at which standard normal noise ends under these logits; where they are -inf, it never does."""
    codes_VD = codebook_VD / spread_of(codebook_VD)
    log_p_NV = logits_NV.log_softmax(-1)
    half_V = codes_VD.square().sum(-1) / 2

    def weights(y_ND: Tensor, u: float) -> Tensor:
        # |y|^2 is the same for all codes.
        return torch.addmm(log_p_NV - half_V / u**2, y_ND, codes_VD.T, alpha=u**-2)

    ratio = (LAST / FIRST) ** (1 / steps)
    before_ND = log_p_NV.exp() @ codes_VD
    y_ND, u = before_ND + FIRST * noise_ND, FIRST
    for _ in range(steps):
        mean_ND = weights(y_ND, u).softmax(-1) @ codes_VD
        # Exact where the mean goes on as it went in the step before: second order at one evaluation a step.
        ahead_ND = mean_ND + (mean_ND - before_ND) / 2
        y_ND, u, before_ND = ahead_ND.lerp(y_ND, ratio), u * ratio, mean_ND
    return weights(y_ND, u).argmax(-1)


def filtered(logits_BlV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Logits with all but the likeliest codes at -inf; 0 switches a filter off."""
    vocabulary = logits_BlV.shape[-1]
    if 0 < top_k < vocabulary:
        least = logits_BlV.topk(top_k).values[..., -1:]
        logits_BlV = logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    if top_p > 0:
        ordered, places = logits_BlV.sort(dim=-1)
        gone = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        gone[..., -1] = False
        logits_BlV = logits_BlV.masked_fill(torch.zeros_like(gone).scatter(-1, places, gone), -torch.inf)
    return logits_BlV
