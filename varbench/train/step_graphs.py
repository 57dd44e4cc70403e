"""Training steps as CUDA graphs. A step of a small model is a thousand kernels of a few microseconds each, and to launch them one by
one takes several times as long as they do: so each kind of step is captured once, gradients, clipping and optimiser included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varbench.policies import TrainStep
from varbench.train.optimiser import set_rate, update
from varbench.train.ranks import Ranks, Share

LARGEST = 10**8
"""Parameters of a model whose steps are captured: those of a larger one take longer than their launch."""
WARM_UP = 2
"""Steps of a kind before it is captured, in which libraries, kernels and the optimiser set up what they need."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a step is given: on the host, before it begins."""

    kind: TrainStep
    """What its kernels depend on, beside the numbers in its inputs."""
    trained: str
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Replayable:
    """A loss whose work on the device follows from the kind of the step."""

    given: Callable[[int, Share], Given]
    loss: Callable[..., Tensor]
    """Of the kind and the inputs, on the device."""
    follows: Callable[[TrainStep], bool]
    """Whether it does for this kind; of others the host is asked in the middle."""


@dataclass(frozen=True, kw_only=True)
class _CapturedStep:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    figures: Tensor


def worth_capturing(module: nn.Module, ranks: Ranks) -> bool:
    """Of a training on one GPU, in one piece."""
    parameters = list(module.parameters())
    alone = ranks.count == ranks.parts == 1 and not ranks.recompute
    return alone and parameters[0].is_cuda and sum(one.numel() for one in parameters) <= LARGEST


class StepGraphs:
    """Makes steps, which share their memory: one runs at a time, and leaves nothing behind but two figures."""

    def __init__(self, replayable: Replayable, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._replayable, self._module, self._optimizer = replayable, module, optimizer
        self._device = next(module.parameters()).device
        self._seen: Counter[TrainStep] = Counter()
        self._known: dict[TrainStep, _CapturedStep] = {}
        self._pool: Any = None
        self._stream = torch.cuda.Stream(self._device)

    def stream(self) -> AbstractContextManager[object]:
        """All of the training goes there: gradients of a capture must not wait for those of another stream."""
        return torch.cuda.stream(self._stream)

    def step(self, step: int, rate: float) -> tuple[str, float, float]:
        """What was trained, its loss and its gradient's norm."""
        given = self._replayable.given(step, Share())
        set_rate(self._optimizer, rate)
        loss, norm = self._figures(given).tolist()
        return given.trained, loss, norm

    def _figures(self, given: Given) -> Tensor:
        captured = self._known.get(given.kind)
        if captured is None:
            self._seen[given.kind] += 1
            inputs = tuple(one.to(self._device) for one in given.inputs)
            if self._seen[given.kind] <= WARM_UP or not self._replayable.follows(given.kind):
                return self._run(given.kind, inputs)
            captured = self._known[given.kind] = self._capture(given.kind, inputs)
        for place, one in zip(captured.inputs, given.inputs, strict=True):
            place.copy_(one)
        captured.graph.replay()
        return captured.figures

    def _capture(self, kind: TrainStep, inputs: tuple[Tensor, ...]) -> _CapturedStep:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            figures = self._run(kind, inputs)
        return _CapturedStep(graph=graph, inputs=inputs, figures=figures)

    def _run(self, kind: TrainStep, inputs: tuple[Tensor, ...]) -> Tensor:
        loss = self._replayable.loss(kind, *inputs)
        loss.backward()
        norm = update(self._optimizer, self._module.parameters())
        return torch.stack((loss.detach().float(), norm.float()))


def stream_of(graphs: StepGraphs | None) -> AbstractContextManager[object]:
    return nullcontext() if graphs is None else graphs.stream()
