"""A layer while it runs, as the loop hands it on.

Letters as in `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from varbench.engine.cache import Space
from varbench.model.fused import add_gated_, kernels, modulated
from varbench.model.transformer import Layer
from varbench.plan.steps import LayerCall, SlotKey, Step, SubLayer
from varbench.policies import SubLayerName


class Stream:
    """The residual stream, and what a sub-layer gave that is still to be added: by kernels of ours in the pass that norms for the next."""

    def __init__(self, x_RLC: Tensor) -> None:
        self._x_RLC = x_RLC
        self._added: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        return self._x_RLC.shape[0]

    def add(self, given_RLC: Tensor, gamma_R1C: Tensor) -> None:
        self.whole()
        if kernels(self._x_RLC, given_RLC.dtype):
            self._added = given_RLC, gamma_R1C
        else:
            add_gated_(self._x_RLC, given_RLC, gamma_R1C)

    def whole(self) -> Tensor:
        """All that was added; what is added to it where it lies is in the stream."""
        if self._added:
            add_gated_(self._x_RLC, *self._added)
            self._added = None
        return self._x_RLC

    def modulated(self, scale_R1C: Tensor, shift_R1C: Tensor, dtype: torch.dtype) -> Tensor:
        added, self._added = self._added, None
        return modulated(self._x_RLC, scale_R1C, shift_R1C, dtype, added=added)

    def last(self, count: int, scale_R1C: Tensor, shift_R1C: Tensor, dtype: torch.dtype) -> Tensor:
        """The last tokens, normed."""
        if count == self._x_RLC.shape[1]:
            return self.modulated(scale_R1C, shift_R1C, dtype)
        return modulated(self.whole()[:, -count:], scale_R1C, shift_R1C, dtype)


@dataclass(frozen=True, kw_only=True)
class RunningLayer:
    """One layer of a step: what is planned for it, and what it computes with."""

    step: Step
    planned: LayerCall
    block: Layer
    modulation: tuple[Tensor, ...]
    bias_3C: Tensor
    mask: Tensor | None

    @property
    def key(self) -> SlotKey:
        return SlotKey(self.step.backbone, self.planned.layer, self.planned.slot)


@dataclass(frozen=True, kw_only=True)
class Residual:
    """The attention or the FFN of a call."""

    name: SubLayerName
    planned: SubLayer
    call: RunningLayer
    compute: Callable[[Tensor], Tensor]
    """Of what is normed."""
    gamma_R1C: Tensor
    scale_R1C: Tensor
    shift_R1C: Tensor
    """Of the rows that run."""
    dtype: torch.dtype
    places_Rn: Tensor | None = None
    """Of tokens that were picked before, for another sub-layer too."""

    def entering(self, stream: Stream) -> Tensor:
        """All of the stream, normed."""
        if len(self.scale_R1C) < stream.rows:
            return self.normed(stream.whole())
        return stream.modulated(self.scale_R1C, self.shift_R1C, self.dtype)

    def normed(self, chosen_RnC: Tensor) -> Tensor:
        return modulated(chosen_RnC[: len(self.scale_R1C)], self.scale_R1C, self.shift_R1C, self.dtype)


@dataclass(frozen=True, kw_only=True)
class HeadGroup:
    """Queries, and keys and values of the call's own, of a group of heads."""

    group: int
    q_RHLc: Tensor
    k_RHLc: Tensor
    v_RHLc: Tensor
    space: Space | None = None
    """Where keys and values lie already."""


# Numbers from the host make a GPU wait, and cannot be captured, so they are brought once.


@cache
def numbers(found: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(found, device=device)


@cache
def coarser_or_own(counts: tuple[int, ...], device: torch.device) -> Tensor:
    scale_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
    return scale_of[:, None] >= scale_of[None, :]
