"""A part of an FFN: the experts that each token chose, or the first ones for all.

Always gathered, expert by expert: a product of all experts that is masked afterwards would be faster where experts are small
and tokens few, and would compute what the plan says is not computed.

Letters: R rows, n tokens, N tokens of all rows, C width, E experts, U hidden units of an expert, M experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varbench.experts import Own, WidthPolicy
from varbench.model.transformer import FeedForward
from varbench.model.weighted import product
from varbench.plan.steps import Width

Seen = Callable[[Tensor], None]
"""Is shown the hidden numbers of each part."""


def first_experts(
    x_RnC: Tensor, ffn: FeedForward, width: Width, *, dtype: torch.dtype, seen: Seen, split_EU: Tensor | None = None
) -> Tensor:
    """The first experts' output, in one product. Their units lie side by side, or are those that `split_EU` says."""
    units = ffn.fc1.out_features // width.experts * width.chosen
    part = slice(0, units) if split_EU is None else split_EU[: width.chosen].flatten()
    hidden = _linear(x_RnC.to(dtype), ffn.fc1.weight[part], ffn.fc1.bias[part], gelu=True)
    seen(hidden)
    return _linear(hidden, ffn.fc2.weight[:, part], ffn.fc2.bias)


def chosen_experts(
    x_RnC: Tensor,
    ffn: FeedForward,
    width: Width,
    chosen_RnM: Tensor,
    *,
    dtype: torch.dtype,
    seen: Seen,
    split_EU: Tensor | None = None,
) -> Tensor:
    """The sum of each token's experts, in float32 until it is whole."""
    x_NC = x_RnC.to(dtype).flatten(0, 1)
    units = ffn.fc1.out_features // width.experts
    chosen = chosen_RnM.flatten()
    order = chosen.argsort(stable=True)
    token = order // chosen_RnM.shape[-1]
    counts = torch.bincount(chosen, minlength=width.experts).tolist()
    out_NC = ffn.fc2.bias.float().repeat(len(x_NC), 1)
    for expert, tokens in enumerate(token.split(counts)):
        if not len(tokens):
            continue
        part = slice(expert * units, (expert + 1) * units) if split_EU is None else split_EU[expert]
        hidden = _linear(x_NC[tokens], ffn.fc1.weight[part], ffn.fc1.bias[part], gelu=True)
        seen(hidden)
        out_NC.index_add_(0, tokens, _linear(hidden, ffn.fc2.weight[:, part], None).float())
    return out_NC.to(dtype).view(x_RnC.shape)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What chooses and finds the experts of a layer."""

    policy: WidthPolicy
    own: Own
    layer: int
    split: Tensor | None
    """None where the layer's units lie expert by expert."""


def by_scale(
    x_RnC: Tensor,
    ffn: FeedForward,
    widths: Sequence[tuple[int, int, Width | None]],
    experts: Experts,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """The FFN over tokens of several scales, of each (scale, tokens, width) the part that is computed at it."""
    made = []
    for (scale, _, width), x in zip(widths, x_RnC.split([tokens for _, tokens, _ in widths], dim=1), strict=True):
        if width is None:
            made.append(ffn(x, dtype))
            continue
        given: dict[str, Any] = {"dtype": dtype, "seen": lambda hidden: None, "split_EU": experts.split}
        if not width.routed:
            made.append(first_experts(x, ffn, width, **given))
            continue
        route = experts.policy.route
        with torch.no_grad():
            chosen = route(x, width.chosen, layer=experts.layer, scale=scale, own=experts.own)
        made.append(chosen_experts(x, ffn, width, chosen, **given))
    return torch.cat(made, dim=1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    return product(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), gelu=gelu)
