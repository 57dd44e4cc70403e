"""The full model for generators that learn from it, or run it at some of the scales: its tensors, and codes as they choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from varbench.engine.generate import generate
from varbench.engine.loop import Sampling, refuse_undrawn
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan
from varbench.policies import MAIN, StepPolicy, StepSpec
from varbench.spec import ModelSpec


class _SomeScales(StepPolicy):
    """Scales before `until`, of which the first are given."""

    def __init__(self, *, given: int, until: int) -> None:
        self._given, self._until = given, until

    def steps(self) -> tuple[StepSpec, ...]:
        later = [StepSpec(scales=(scale,)) for scale in range(self._given + 1, self._until)]
        return (StepSpec(scales=tuple(range(self._given + 1))), *later)


@cache
def _plan(model: ModelSpec, given: int, until: int) -> tuple[Plan, RowPolicies]:
    steps: Owned[StepPolicy] = Owned(plugin="the full model", policy=_SomeScales(given=given, until=until))
    row = RowPolicies(name="full model", steps=steps)
    return compile_plan(model, row, given=given), row


class FullModel:
    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, *, dtype: torch.dtype) -> None:
        self._transformer, self._tokenizer, self._dtype = transformer, tokenizer, dtype

    @property
    def model(self) -> ModelSpec:
        return self._transformer.spec

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return dict(self._transformer.named_parameters())

    def draw(
        self,
        labels_B: Tensor,
        choose: Callable[[Tensor, int], Tensor],
        *,
        cfg: float,
        until: int,
        given_Bn: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, n) of the scales before `until`; those that are given fill whole scales."""
        starts = self.model.starts
        given = 0 if given_Bn is None else starts.index(given_Bn.shape[1])
        plan, row = _plan(self.model, given, until)
        made = generate(
            plan,
            row,
            backbones={MAIN: self._transformer},
            tokenizer=self._tokenizer,
            labels_B=labels_B,
            streams_B1=labels_B.unsqueeze(1),
            sampling=Sampling(cfg=cfg),
            dtype=self._dtype,
            forced_BL=given_Bn,
            choose=choose,
        )
        refuse_undrawn(made.tokens_BL, plan)
        return made.tokens_BL[:, : starts[until]]
