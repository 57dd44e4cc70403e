"""Experts behind a gate: which tokens compute any, and what stands in for the output of those that do not.

Letters as in `varbench.experts`, with K the rank of the map that estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from varbench.experts import FfnSeen, Own
from varbench.experts.routers import RoutedExperts, router_loss
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class GatedExperts(RoutedExperts):
    """Of each scale `kept` tokens compute their experts: those whose output is expected to be the largest."""

    def __init__(
        self,
        model: ModelSpec,
        *,
        experts: int,
        router: int,
        rank: int,
        chosen: Sequence[int],
        kept: Sequence[int | None],
    ) -> None:
        super().__init__(model, experts=experts, router=router, chosen=chosen)
        assert self.own is not None
        depth, width = model.depth, model.width
        further = {
            "gate": (depth, 1, width),
            "gate_bias": (depth, 1),
            "lower": (depth, rank, width),
            "lift": (depth, width, rank),
            "mean": (depth, width),
        }
        self._kept = tuple(kept)
        self.own = replace(self.own, shapes={**self.own.shapes, **further})
        self.gating_flops, self.estimating_flops = 2 * width, 4 * width * rank

    def tokens(self, layer: int, scale: int) -> int | None:
        return self._kept[scale]

    def gate(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        return expected_change(hidden_RLC, own, layer).topk(count).indices

    def estimate(self, hidden_RLC: Tensor, *, layer: int, scale: int, own: Own) -> Tensor:
        return estimated(hidden_RLC, own, layer)

    def _initial(self, weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The map gives nothing at first: tokens that are left out pass the FFN by."""
        import torch

        assert self.own is not None
        made = super()._initial(weights, seed)
        random = torch.Generator().manual_seed(seed + 1)
        for name in self.own.shapes.keys() - made.keys():
            made[name] = torch.zeros(self.own.shapes[name])
        for name in ("gate", "lower"):
            made[name] = torch.randn(self.own.shapes[name], generator=random) / self.own.shapes[name][-1] ** 0.5
        return made


def expected_change(hidden_RLC: Tensor, own: Own, layer: int) -> Tensor:
    """(R, L): how much a token's output is expected to add."""
    import torch.nn.functional as F

    gate = own["gate"][layer]
    change_RL1: Tensor = F.linear(hidden_RLC.to(gate.dtype), gate, own["gate_bias"][layer])
    return change_RL1.squeeze(-1)


def estimated(hidden_RLC: Tensor, own: Own, layer: int) -> Tensor:
    import torch.nn.functional as F

    lower = own["lower"][layer]
    output: Tensor = F.linear(F.linear(hidden_RLC.to(lower.dtype), lower), own["lift"][layer], own["mean"][layer])
    return output


def frozen_loss(seen: FfnSeen, own: Own) -> Tensor:
    """Mean square errors of router, gate and map. They share no numbers, so how they are weighed against each other matters
    little."""
    output_RLC = seen.output_RLC.float()
    change = expected_change(seen.hidden_RLC, own, seen.layer) - output_RLC.norm(dim=-1)
    missed = estimated(seen.hidden_RLC, own, seen.layer) - output_RLC
    loss: Tensor = router_loss(seen, own) + change.square().mean() + missed.square().mean()
    return loss
