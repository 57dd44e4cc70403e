"""The loop over scales: from a network's logits to codes, the map that they add up to, and the next scale's features.

Letters as in `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from varbench.engine.going_on import Deciding
from varbench.engine.sampler import drawn, uniforms
from varbench.errors import WrongOutputError
from varbench.model.tokenizer import Quantizer
from varbench.plan.steps import Plan, Step
from varbench.spec import ModelSpec

Observer = Callable[[str, int], None]
"""Called with "start", "logits" (the network is done) or "end" and the step's number; it may look at clocks and memory, and
nothing else. Where memory was short, a generation begins anew, and is told of from the start again."""


Choose = Callable[[Tensor, int], Tensor]
"""Codes (B, l) of logits (B, l, V) after guidance, and the scale's number."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    cfg: float = 1.5
    top_k: int = 0
    top_p: float = 0.0


class Runs(Protocol):
    """What computes a step's logits."""

    def step(self, step: Step, features: Mapping[int, Tensor], cfg: float) -> Tensor: ...


class Loop:
    """The loop over scales: what it is told, and what it has drawn of all images."""

    def __init__(
        self,
        model: ModelSpec,
        quantizer: Quantizer,
        *,
        streams_B1: Tensor,
        sampling: Sampling,
        forced_BL: Tensor | None,
        choose: Choose | None,
        return_logits: bool,
        observer: Observer | None,
    ) -> None:
        self._model, self._quantizer, self._streams_B1, self._sampling = model, quantizer, streams_B1, sampling
        self._forced_BL, self._choose, self._observer = forced_BL, choose, observer
        self._steps = 0
        """Those that have begun."""
        batch, last, device = len(streams_B1), model.sides[-1], streams_B1.device
        self.f_hat = torch.zeros(batch, model.tokenizer.code_dim, last, last, device=device)
        self.tokens = torch.full((batch, model.length), -1, dtype=torch.long, device=device)
        self.logits: Tensor | None = None
        if return_logits:
            shape = (batch, model.length, model.tokenizer.vocabulary)
            self.logits = torch.full(shape, torch.nan, device=device)

    def given(self, scales: Sequence[int]) -> dict[int, Tensor]:
        """Features of scales whose codes are there before the first step, which encodes them too."""
        features: dict[int, Tensor] = {}
        for scale in scales:
            assert self._forced_BL is not None
            if scale:
                features[scale] = self._quantizer.features(self.f_hat, scale)
            span = slice(self._model.starts[scale], self._model.starts[scale + 1])
            self.tokens[:, span] = self._forced_BL[:, span]
            self.f_hat = self.f_hat + self._quantizer.contribution(self.tokens[:, span], scale)
        return features

    def through(
        self,
        run: Runs,
        steps: Sequence[Step],
        *,
        features: dict[int, Tensor] | None = None,
        places: Tensor | None = None,
        deciding: Deciding | None = None,
    ) -> None:
        """These steps, of all images or of those at some places; `features` are those of scales that were given."""
        at: slice | Tensor = slice(None) if places is None else places
        streams_B1, features = self._streams_B1[at], {} if features is None else features
        for index, step in enumerate(steps):
            self._tell_observer("start")
            scale = step.samples
            if scale:
                features[scale] = self._quantizer.features(self.f_hat[at], scale)
            logits_BlV = run.step(step, features, self._sampling.cfg)
            self._tell_observer("logits")
            _forget_features(features, steps[index + 1 :])
            span = slice(self._model.starts[scale], self._model.starts[scale + 1])
            if self.logits is not None:
                self.logits[at, span] = logits_BlV
            if self._forced_BL is not None and self._forced_BL.shape[1] >= span.stop:
                self.tokens[at, span] = self._forced_BL[at, span]
            elif self._choose is not None:
                self.tokens[at, span] = self._choose(logits_BlV, scale)
            else:
                self.tokens[at, span] = _drawn(logits_BlV, self._sampling, streams_B1, scale)
            # What nothing could be drawn for has the number after the last; it is refused at the end.
            codes = self.tokens[at, span].clamp(max=self._model.tokenizer.vocabulary - 1)
            added = self._quantizer.contribution(codes, scale)
            if places is None:
                self.f_hat = self.f_hat + added
            else:
                self.f_hat[places] += added
            if deciding is not None:
                deciding.drawn(scale, self.f_hat, logits_BlV)
            # The largest tensor of a step must not lie there while the next one runs.
            del logits_BlV, codes, added
            self._tell_observer("end")
            self._steps += 1

    def _tell_observer(self, moment: str) -> None:
        if self._observer:
            self._observer(moment, self._steps)


def _forget_features(features: dict[int, Tensor], later: Sequence[Step]) -> None:
    """Only what a later step encodes again stays."""
    again = {scale for step in later for scale in step.scales}
    for scale in [scale for scale in features if scale not in again]:
        del features[scale]


def _drawn(logits_BlV: Tensor, sampling: Sampling, streams_B1: Tensor, scale: int) -> Tensor:
    noise = uniforms(streams_B1, scale=scale, count=logits_BlV.shape[1])
    return drawn(logits_BlV, noise, top_k=sampling.top_k, top_p=sampling.top_p)


def refuse_undrawn(tokens_BL: Tensor, plan: Plan) -> None:
    """Of logits that are NaN or infinite no code is drawn, but the number after the last one. Looked for once, at the end: a look
    at numbers on a GPU waits for all that was asked of it before."""
    beyond = (tokens_BL == plan.model.tokenizer.vocabulary).any(dim=0).nonzero()
    if len(beyond):
        scale = next(scale for scale in range(plan.model.scales) if int(beyond[0]) < plan.model.starts[scale + 1])
        raise WrongOutputError(
            f"{plan.name}: from {plan.model.scale_name(scale)} on, logits are NaN or infinite and nothing can be drawn from them; "
            "numbers may be too large for the type that it computes in"
        )
