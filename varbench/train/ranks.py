"""Several processes that train one model, each on its part of every batch, as `torchrun` starts them.

On a busy CPU two processes of one thread are several times faster than one process of two: they meet once a step, and
not at every operation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from varbench.errors import UserError

Entry = TypeVar("Entry", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those that train together. Alone, every call is free."""

    rank: int = 0
    count: int = 1

    def part(self, rows: NDArray[Entry]) -> NDArray[Entry]:
        if len(rows) % self.count:
            raise UserError(
                f"a batch of {len(rows)} cannot be split evenly over {self.count} processes. Change --batch."
            )
        return rows[self.rank :: self.count]

    @torch.no_grad()
    def average_gradients(self, module: nn.Module) -> None:
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def close(self) -> None:
        """Wait for the others, then part."""
        if self.count > 1:
            distributed.barrier()
            distributed.destroy_process_group()


def join_ranks() -> Ranks:
    """The processes that `torchrun` started with this one; alone where it was not used."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    distributed.init_process_group("gloo")
    return Ranks(rank=distributed.get_rank(), count=count)
