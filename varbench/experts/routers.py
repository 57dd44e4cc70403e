"""Experts by balanced clustering, and routers that foresee how much each of them would add: what methods with experts share.

The rule is that of DMoE-VAR (arXiv 2510.08629): rows of the first matrix that point the same way make an expert; a router of
two linear layers, GELU between them and the absolute value after them, regresses the norms of the experts' outputs; a token
computes those of the largest predicted norms.

Letters as in `varbench.experts`, with H = E U hidden units, D units of a router, N tokens of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from varbench.experts import FfnSeen, Own, OwnParameters, WidthPolicy
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

UNITS, EXPERTS, WIDEST, NARROWEST = 128, 32, 128, 16
_PASSES = 20


def experts_of(model: ModelSpec) -> int:
    """Experts of 128 hidden units, as published for d16 and d20; where that were fewer than d16's 32, so many smaller ones."""
    return max(EXPERTS, model.hidden // UNITS)


def router_width(model: ModelSpec) -> int:
    """128 units, as published for d16; in proportion for narrower models, on which the router would cost more than it saves."""
    return max(NARROWEST, min(WIDEST, model.width // 8))


class RoutedExperts(WidthPolicy):
    """At each scale as many experts as `chosen` says: those whose outputs a router expects to be the largest."""

    def __init__(self, model: ModelSpec, *, experts: int, router: int, chosen: Sequence[int]) -> None:
        self._chosen, self.experts = tuple(chosen), experts
        self.routing_flops = 2 * router * (model.width + experts)
        depth, width = model.depth, model.width
        shapes = {
            "split": (depth, experts, model.hidden // max(1, experts)),
            "down": (depth, router, width),
            "up": (depth, experts, router),
        }
        self.own = OwnParameters(shapes=shapes, whole=("split",), initial=self._initial)

    def count(self, layer: int, scale: int) -> int | None:
        return self._chosen[scale]

    def split(self, layer: int, *, own: Own) -> Tensor | None:
        return own["split"][layer]

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        return predicted_norms(hidden_RLC, own["down"][layer], own["up"][layer]).topk(count).indices

    def _initial(self, weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        import torch

        assert self.own is not None
        random = torch.Generator().manual_seed(seed)
        made = {}
        for name in ("down", "up"):
            shape = self.own.shapes[name]
            made[name] = (torch.rand(shape, generator=random) * 2 - 1) * math.sqrt(6 / shape[-1])
        rows = [weights[f"blocks.{layer}.ffn.fc1.weight"].cpu() for layer in range(self.own.shapes["split"][0])]
        made["split"] = torch.stack([balanced_split(one, self.experts, seed=seed) for one in rows])
        return made


def predicted_norms(hidden_RLC: Tensor, down_DC: Tensor, up_ED: Tensor) -> Tensor:
    """(R, L, E)."""
    import torch.nn.functional as F

    inner = F.gelu(F.linear(hidden_RLC.to(down_DC.dtype), down_DC))
    return F.linear(inner, up_ED).abs()


def expert_norms(hidden_RLC: Tensor, weights: Mapping[str, Tensor], split_EU: Tensor) -> Tensor:
    """Norms (R, L, E) of what each expert adds, without making it: those of a sum of columns follow from their products."""
    import torch
    import torch.nn.functional as F

    hidden = F.linear(hidden_RLC.float(), weights["fc1.weight"].float(), weights["fc1.bias"].float())
    made_RLEU = F.gelu(hidden, approximate="tanh")[..., split_EU]
    columns_ECU = weights["fc2.weight"].float()[:, split_EU].transpose(0, 1)
    products_EUU = columns_ECU.transpose(1, 2) @ columns_ECU
    squares = (torch.einsum("rleu,euv->rlev", made_RLEU, products_EUU) * made_RLEU).sum(dim=-1)
    return squares.clamp_min(0).sqrt()


def router_loss(seen: FfnSeen, own: Own) -> Tensor:
    """Mean square of the difference between predicted and true norms, over tokens and experts."""
    import torch

    down, up, split = (own[name][seen.layer] for name in ("down", "up", "split"))
    with torch.no_grad():
        true = expert_norms(seen.hidden_RLC, seen.weights, split)
    return (predicted_norms(seen.hidden_RLC, down, up) - true).square().mean()


def balanced_split(rows_HC: Tensor, experts: int, *, seed: int) -> Tensor:
    """Hidden units (E, U), ascending, of experts of equal size whose rows point the same way: k-means in which no cluster takes
    more than its share. Units go where they are nearest; from those that come to a cluster it keeps the nearest, and the others
    go to the next (a stable matching)."""
    import torch
    import torch.nn.functional as F

    points_HC = F.normalize(rows_HC.float(), dim=1)
    first = torch.randperm(len(points_HC), generator=torch.Generator().manual_seed(seed))[:experts]
    means_EC, found = points_HC[first], torch.empty(0, dtype=torch.long)
    for _ in range(_PASSES):
        likeness_HE = 2 * points_HC @ means_EC.T - means_EC.square().sum(dim=1)
        expert_H = _matched(likeness_HE, len(points_HC) // experts)
        units_EU = expert_H.argsort(stable=True).view(experts, -1)
        if torch.equal(units_EU, found):
            break
        found = units_EU
        means_EC = points_HC[units_EU].mean(dim=1)
    return found


def _matched(likeness_HE: Tensor, room: int) -> Tensor:
    """For each unit the expert that it ends at."""
    import torch

    open_HE = likeness_HE.clone()
    while True:
        best_H, wish_H = open_HE.max(dim=1)
        full = (torch.bincount(wish_H, minlength=likeness_HE.shape[1]) > room).nonzero().flatten().tolist()
        if not full:
            return wish_H
        for expert in full:
            came = (wish_H == expert).nonzero().flatten()
            refused = came[best_H[came].argsort(descending=True, stable=True)[room:]]
            open_HE[refused, expert] = -torch.inf
