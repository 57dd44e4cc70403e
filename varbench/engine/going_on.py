"""Where a generation may go on in several ways: what it is decided by is decoded, the policy is asked, its answer looked at.

Letters as in `generate`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.engine.watch import Watch
from varbench.plan.steps import Decision, Plan
from varbench.policies import DecisionPolicy, SoFar


class Deciding:
    """One generation's decision, until it has fallen."""

    def __init__(self, plan: Plan, policy: DecisionPolicy, *, decode: Callable[[Tensor], Tensor], watch: Watch) -> None:
        assert plan.decision is not None
        self.decision: Decision = plan.decision
        self._scale = plan.steps[plan.decision.after].samples
        self._policy, self._decode, self._watch = policy, decode, watch
        self._previews: list[Tensor] = []
        self.ways_B: Tensor | None = None

    def drawn(self, scale: int, map_BDhw: Tensor, logits_BlV: Tensor) -> None:
        """After the tokens of a scale."""
        if self.ways_B is not None:
            return
        for side in (side for after, side in self.decision.previews if after == scale):
            shrunk = F.interpolate(map_BDhw, size=(side, side), mode="area") if side < map_BDhw.shape[-1] else map_BDhw
            self._watch.previewed(shrunk)
            self._previews.append(self._decode(shrunk))
        if scale == self._scale:
            seen = SoFar(map_BDhw=map_BDhw, logits_BlV=logits_BlV, previews=tuple(self._previews))
            self._previews = []
            self.ways_B = self._checked(self._policy.decide(seen), len(map_BDhw)).to(map_BDhw.device)
            self._watch.decided(self.ways_B, len(self.decision.ways))

    def _checked(self, answer: object, batch: int) -> Tensor:
        """The answer, if it is one of those that were declared."""
        what, count = f"{type(self._policy).__name__}.decide", len(self.decision.ways)
        try:
            ways_B = torch.as_tensor(answer)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{what} gave {answer!r}; give {batch} places of ways, 0 to {count - 1}") from error
        whole = not (ways_B.is_floating_point() or ways_B.is_complex() or ways_B.dtype == torch.bool)
        if not whole or tuple(ways_B.shape) != (batch,) or not ((0 <= ways_B) & (ways_B < count)).all():
            raise ValueError(f"{what} gave {ways_B.tolist()}; give {batch} places of ways, 0 to {count - 1}")
        if self.decision.together and len(ways_B.unique()) > 1:
            raise ValueError(f"{what} gave {ways_B.tolist()}, and said that all images of a batch go the same way")
        return ways_B.long()
