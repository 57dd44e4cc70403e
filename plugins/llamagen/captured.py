"""A decode step as a CUDA graph: launched once instead of operator by operator, which is most of a small batch's time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .generator import Step
from .network import Network, Reading


class CapturedStep(Step):
    """Every step reads the whole cache, so that all are one; what is not written yet is masked."""

    def __init__(self, network: Network, rows: int) -> None:
        super().__init__(network, rows)
        device = network.output.weight.device
        self._codes = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = torch.ones(1, dtype=torch.long, device=device)
        self._places = torch.arange(network.size.capacity, device=device)
        self._graph: Any = None
        self._logits: Tensor | None = None

    def __call__(self, codes_B: Tensor, position: int) -> Tensor:
        self._codes.copy_(codes_B)
        self._position.fill_(position)
        # Who watches operators is shown them: of a graph that is replayed there is none to see.
        if self._codes.device.type != "cuda" or torch._C._len_torch_dispatch_stack():
            return self._run()
        if self._graph is None:
            self._capture()
        self._graph.replay()
        assert self._logits is not None
        return self._logits.clone()

    def _run(self) -> Tensor:
        mask = (self._places <= self._position)[None, None, None]
        return self.network.step(self._codes, self.caches, Reading(self._position, len(self._places), mask))

    def _capture(self) -> None:
        """Libraries set themselves up in the first runs, which must not be captured. They write what the replay writes again."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()
