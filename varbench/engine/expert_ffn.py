"""A part of an FFN: the experts that each token chose, or the first ones for all, of the tokens that a gate keeps.

Always gathered: a product of all experts that is masked afterwards would be faster where experts are small and tokens few, and
would compute what the plan says is not computed. A CPU goes expert by expert. A GPU, which would wait for the host to be told of each
one's tokens, computes all in one call where there is a kernel for it.

Letters: R rows, n tokens, N tokens of all rows, C width, E experts, U hidden units of an expert, M experts of a token (-1
for one that is left out), m tokens that are kept, o others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.experts import Own, WidthPolicy
from varbench.model.transformer import FeedForward
from varbench.model.weighted import grouped_product, product
from varbench.plan.steps import Width

TOGETHER = 65536
"""Pairs of a token and one of its experts that a GPU computes at a time: enough for it to be busy, and no more is held."""

ROWS = 64
"""Rows that a CPU multiplies together are a multiple of this, or fewer: so there are few kinds of products, however tokens choose."""


class FfnWatcher(Protocol):
    """Is shown what is computed."""

    def routed(self, chosen_RnM: Tensor) -> None: ...

    def part(self, made: Tensor) -> None:
        """Hidden numbers."""

    def estimated(self, output_RnC: Tensor) -> None: ...


class NobodyWatches(FfnWatcher):
    def routed(self, chosen_RnM: Tensor) -> None:
        pass

    def part(self, made: Tensor) -> None:
        pass

    def estimated(self, output_RnC: Tensor) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A layer's FFN at a scale, and what chooses the part of it that is computed."""

    ffn: FeedForward
    width: Width
    policy: WidthPolicy
    own: Own
    layer: int
    scale: int
    split: Tensor | None
    """Units (E, U) of each expert; None where the layer's units lie expert by expert."""
    dtype: torch.dtype
    seen: FfnWatcher


def part_of_ffn(x_RnC: Tensor, experts: Experts) -> Tensor:
    """The output for all tokens: computed by the experts of those that the gate keeps, estimated for the others."""
    kept = experts.width.tokens
    if kept is None:
        return _of_experts(x_RnC, experts)
    policy, asked = experts.policy, {"layer": experts.layer, "scale": experts.scale}
    with torch.no_grad():
        places_Rm = policy.gate(x_RnC, kept, own=experts.own, **asked)
    left_out = torch.ones(x_RnC.shape[:2], dtype=torch.bool, device=x_RnC.device).scatter_(1, places_Rm, False)
    others_Ro = left_out.byte().argsort(dim=1, descending=True, stable=True)[:, : x_RnC.shape[1] - kept]
    kept_RmC, others_RoC = (at.unsqueeze(-1).expand(-1, -1, x_RnC.shape[-1]) for at in (places_Rm, others_Ro))
    made = _of_experts(x_RnC.gather(1, kept_RmC), experts)
    estimate = policy.estimate(x_RnC.gather(1, others_RoC), own=experts.own, **asked)
    experts.seen.estimated(estimate)
    out = torch.zeros(x_RnC.shape, dtype=made.dtype, device=made.device)
    return out.scatter(1, kept_RmC, made).scatter(1, others_RoC, estimate.to(made.dtype))


def _of_experts(x_RnC: Tensor, experts: Experts) -> Tensor:
    width = experts.width
    if not width.routed:
        return first_experts(x_RnC, experts)
    with torch.no_grad():
        chosen_RnM = experts.policy.route(
            x_RnC, width.chosen, layer=experts.layer, scale=experts.scale, own=experts.own
        )
    experts.seen.routed(chosen_RnM)
    compute = grouped_experts if _are_grouped(x_RnC, experts) else chosen_experts
    return compute(x_RnC, chosen_RnM, experts)


def first_experts(x_RnC: Tensor, experts: Experts) -> Tensor:
    """The first experts' output, or that of all, in one product."""
    ffn, width, split_EU = experts.ffn, experts.width, experts.split
    part: slice | Tensor = slice(0, ffn.fc1.out_features // width.experts * width.chosen)
    if split_EU is not None and width.chosen < width.experts:
        part = split_EU[: width.chosen].flatten()
    hidden = _linear(x_RnC.to(experts.dtype), ffn.fc1.weight[part], ffn.fc1.bias[part], gelu=True)
    experts.seen.part(hidden)
    return _linear(hidden, ffn.fc2.weight[:, part], ffn.fc2.bias)


def chosen_experts(x_RnC: Tensor, chosen_RnM: Tensor, experts: Experts) -> Tensor:
    """The sum of each token's experts, in float32 until it is whole."""
    ffn, width, split_EU = experts.ffn, experts.width, experts.split
    x_NC = x_RnC.to(experts.dtype).flatten(0, 1)
    units = ffn.fc1.out_features // width.experts
    chosen = chosen_RnM.flatten()
    order = chosen.argsort(stable=True)
    if width.varies:  # first come those that are left out
        order = order[int((chosen < 0).sum()) :]
    token = order // chosen_RnM.shape[-1]
    counts = torch.bincount(chosen[order], minlength=width.experts).tolist()
    out_NC = ffn.fc2.bias.float().repeat(len(x_NC), 1)
    for expert, tokens in _pieces(token, counts):
        part = slice(expert * units, (expert + 1) * units) if split_EU is None else split_EU[expert]
        hidden = _linear(x_NC[tokens], ffn.fc1.weight[part], ffn.fc1.bias[part], gelu=True)
        experts.seen.part(hidden)
        out_NC.index_add_(0, tokens, _linear(hidden, ffn.fc2.weight[:, part], None).float())
    return out_NC.to(experts.dtype).view(x_RnC.shape)


def _are_grouped(x_RnC: Tensor, experts: Experts) -> bool:
    """Whether one call multiplies each expert's tokens by its weights: by a kernel for the matrices that a GPU is fastest at, of
    rows of whole 16 bytes, and without gradients. How many tokens an expert has, the host needs not be told then; where tokens
    choose how many experts they have, how many rows there are is for the host to know."""
    if not x_RnC.is_cuda or torch.is_grad_enabled() or experts.split is not None or experts.width.varies:
        return False
    ffn = experts.ffn
    aligned = ffn.fc1.in_features % 8 == 0 == ffn.fc1.out_features // experts.width.experts % 8
    aligned = aligned and all(
        one.is_contiguous() and one.data_ptr() % 16 == 0 for one in (ffn.fc1.weight, ffn.fc2.weight)
    )
    known = torch.version.hip is None and torch.cuda.get_device_capability(x_RnC.device)[0] in (9, 10)
    return aligned and known and experts.dtype == torch.bfloat16


def grouped_experts(x_RnC: Tensor, chosen_RnM: Tensor, experts: Experts) -> Tensor:
    """The same in two products, without the host. Sums have one order, since no two experts write to one place."""
    some = max(1, TOGETHER // chosen_RnM.shape[-1])
    pieces = zip(x_RnC.flatten(0, 1).split(some), chosen_RnM.flatten(0, 1).split(some), strict=True)
    return torch.cat([_piece(x_NC, chosen_NM, experts) for x_NC, chosen_NM in pieces]).view(x_RnC.shape)


def _piece(x_NC: Tensor, chosen_NM: Tensor, experts: Experts) -> Tensor:
    """P: pairs of a token and an expert."""
    ffn, count, many = experts.ffn, experts.width.experts, chosen_NM.shape[-1]
    into_ECU = ffn.fc1.weight.to(experts.dtype).unflatten(0, (count, -1)).transpose(1, 2)
    from_EUC = ffn.fc2.weight.to(experts.dtype).unflatten(1, (count, -1)).permute(1, 2, 0)
    bias_EU = ffn.fc1.bias.float().unflatten(0, (count, -1))
    expert_P, order_P = chosen_NM.flatten().sort(stable=True)
    ends_E = torch.searchsorted(expert_P, torch.arange(count, device=x_NC.device), right=True, out_int32=True)
    hidden_PU = grouped_product(x_NC.to(experts.dtype)[order_P // many], into_ECU, ends_E)
    hidden_PU = F.gelu(hidden_PU + bias_EU[expert_P], approximate="tanh").to(experts.dtype)
    experts.seen.part(hidden_PU)
    parts_PC = grouped_product(hidden_PU, from_EUC, ends_E)
    back_PC = torch.empty_like(parts_PC).index_copy_(0, order_P, parts_PC)
    summed_NC: Tensor = back_PC.unflatten(0, (-1, many)).sum(dim=1, dtype=torch.float32) + ffn.fc2.bias.float()
    return summed_NC.to(experts.dtype)


def _pieces(token: Tensor, counts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """The tokens of each expert, at a time as many as are multiplied together. To set up a product of so many rows as there never
    were takes a CPU's library as long as thirty of them: whole multiples of `ROWS` go together, and then the rest."""
    for expert, tokens in enumerate(token.split(list(counts))):
        whole = len(tokens) // ROWS * ROWS if token.device.type == "cpu" else len(tokens)
        yield from ((expert, piece) for piece in (tokens[:whole], tokens[whole:]) if len(piece))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    return product(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), gelu=gelu)
