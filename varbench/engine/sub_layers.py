"""An attention or an FFN of a call, of all tokens or of those that a token policy picks; and what such a policy keeps.

Letters as in `generate`, with n tokens that are picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from varbench.engine.cache import State
from varbench.engine.layer_run import Residual, Stream
from varbench.engine.watch import Watch
from varbench.plan.state import noted_name
from varbench.plan.steps import Plan, SlotKey
from varbench.policies import TokenPolicy


@dataclass(kw_only=True)
class SubLayers:
    """Runs them, one after another."""

    plan: Plan
    policy: TokenPolicy | None
    state: State
    watch: Watch
    dtype: torch.dtype
    last_fill: Mapping[tuple[SlotKey, str], int]
    """The last scale at which each is filled in."""

    def __post_init__(self) -> None:
        self._notes = any(sub.noted for step in self.plan.steps for call in step.calls for sub in call.sub_layers)

    def run(self, stream: Stream, sub: Residual) -> Tensor | None:
        """Adds one residual branch to the stream: of all tokens, or of those a policy picks with the others filled in; of none,
        nothing. Returns the places that were picked."""
        planned = sub.planned
        if not planned.tokens:
            return None
        if not (planned.picked or planned.remembered or planned.noted):
            stream.add(sub.compute(sub.entering(stream)), sub.gamma_R1C)
            self.watch.remembers()
            return None
        x_RLC = stream.whole()
        if planned.picked and sub.places_Rn is None:
            sub = replace(sub, places_Rn=self._pick(x_RLC, sub))
        output = self._on_picked(x_RLC, sub) if planned.picked else sub.compute(sub.normed(x_RLC)) * sub.gamma_R1C
        self._keep(x_RLC, output, sub)
        self.watch.remembers()
        x_RLC.add_(output)
        return sub.places_Rn

    def _keep(self, x_RLC: Tensor, output_RLC: Tensor, sub: Residual) -> None:
        """Remembers the output and notes what the policy wants to know later, or forgets both where nothing is filled in again."""
        key, scale = sub.call.key, sub.call.step.samples
        last = self.last_fill.get((key, sub.name)) == scale
        if sub.planned.remembered:
            self.state.remember(key, sub.name, output_RLC[:, -self.plan.model.tokens[scale] :].to(self.dtype))
        elif last:
            self.state.forget(key, sub.name)
        if sub.planned.noted:
            self.state.remember(key, noted_name(sub.name), self._noted(x_RLC, output_RLC, sub))
            self.watch.noted(sub.name, len(x_RLC))
        elif last:
            self.state.forget(key, noted_name(sub.name))

    def _noted(self, x_RLC: Tensor, output_RLC: Tensor, sub: Residual) -> Tensor:
        assert self.policy is not None
        noted = self.policy.note(
            x_RLC, output_RLC, self.state.recall(sub.call.key, noted_name(sub.name)), **self._where(sub)
        )
        expected = (len(x_RLC), sub.planned.noted)
        if tuple(noted.shape) != expected or not noted.is_floating_point():
            raise ValueError(
                f"{type(self.policy).__name__}.note gave {tuple(noted.shape)} of {noted.dtype}, not {expected} of a type with "
                "fractions, as it is kept in the compute type"
            )
        return noted.to(self.dtype)

    @staticmethod
    def _where(sub: Residual) -> dict[str, Any]:
        return {"layer": sub.call.planned.layer, "scale": sub.call.step.samples, "sublayer": sub.name}

    def _told(self, sub: Residual) -> dict[str, Any]:
        """What a policy is told, and what it noted where it notes anything."""
        if not self._notes:
            return self._where(sub)
        return {**self._where(sub), "noted_Rn": self.state.recall(sub.call.key, noted_name(sub.name))}

    def _pick(self, x_RLC: Tensor, sub: Residual) -> Tensor:
        assert self.policy is not None
        places_Rn = self.policy.pick(x_RLC, sub.planned.tokens, **self._told(sub))
        self.watch.picked(places_Rn)
        return places_Rn

    def _on_picked(self, x_RLC: Tensor, sub: Residual) -> Tensor:
        policy, places_Rn = self.policy, sub.places_Rn
        assert policy is not None and places_Rn is not None
        length, width = x_RLC.shape[1:]
        chosen_RnC = x_RLC.gather(1, places_Rn.unsqueeze(-1).expand(-1, -1, width))
        part = sub.compute(sub.normed(chosen_RnC)) * sub.gamma_R1C
        remembered = self.state.recall(sub.call.key, sub.name)
        filled = policy.fill(part, places_Rn, remembered, length=length, **self._told(sub))
        self.watch.filled(sub.name, filled)
        return filled
