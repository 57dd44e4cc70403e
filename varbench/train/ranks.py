"""How a batch is computed: by several processes, as `torchrun` starts them, and each part of it in pieces. Neither changes what
is trained, beyond the rounding of sums.

On a busy CPU two processes of one thread are several times faster than one process of two: they meet once a step, and
not at every operation.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from varbench.base.termination import terminated_at_once
from varbench.errors import UserError

Entry = TypeVar("Entry", bound=np.generic)

LIMIT = timedelta(minutes=30)
"""Of joining, and of a step."""
SLEEP = 30.0
"""Seconds in which whoever started the processes ends those whose first has failed."""
PATIENCE = timedelta(days=1)
"""Of what the first process does alone, as it makes tokens or waits for another run that trains the same."""


@dataclass(frozen=True)
class Share:
    """One of so many equal parts of a batch."""

    place: int = 0
    of: int = 1

    def rows(self, whole: NDArray[Entry]) -> NDArray[Entry]:
        return whole[self.place :: self.of]


Loss = Callable[[int, Share], tuple[str, Tensor]]
"""What a step trains, and its mean loss over a share of the step's batch."""


class _Step(nn.Module):
    """A step as a module, for what wants one: its parameters are those that are trained."""

    def __init__(self, trained: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.trained = trained
        self._loss = loss

    def forward(self, step: int, share: Share) -> tuple[str, Tensor]:
        return self._loss(step, share)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those that train together. Alone, every call is free."""

    rank: int = 0
    count: int = 1
    parts: int = 1
    """Pieces of this process's part of a batch, one after the other: their gradients are added up."""
    recompute: bool = False
    """Layers keep no activations for the backward pass, which computes them again."""
    patient: distributed.ProcessGroup | None = None
    """The same processes, for what may take long."""

    def check(self, batch: int) -> None:
        if batch % (self.count * self.parts):
            pieces = f" in {self.parts} parts each" if self.parts > 1 else ""
            self.refuse(
                f"a batch of {batch} cannot be split evenly over {self.count} processes{pieces}. Change --batch or --parts."
            )

    def backward(self, module: nn.Module, loss: Loss) -> Callable[[int], tuple[str, float]]:
        """Gives what computes a step's gradients, averaged over all processes; with what the step trained and its own loss."""
        step_of: nn.Module = _Step(module, loss)
        together: DistributedDataParallel | None = None
        if self.count > 1:
            # A step of a subnet leaves the other layers out.
            step_of = together = DistributedDataParallel(
                step_of, find_unused_parameters=True, gradient_as_bucket_view=True
            )

        def run(step: int) -> tuple[str, float]:
            trained, value = "", 0.0
            for part in range(self.parts):
                last = part + 1 == self.parts
                waits: AbstractContextManager[object] = contextlib.nullcontext()
                if together is not None and not last:
                    waits = together.no_sync()
                with waits:
                    share = Share(self.rank * self.parts + part, self.count * self.parts)
                    trained, found = cast(tuple[str, Tensor], step_of(step, share))
                    (found if self.parts == 1 else found / self.parts).backward()
                value += float(found.detach()) / self.parts
            return trained, value

        return run

    def first_says(self, mine: bool) -> bool:
        """What the first process says to a question, for all: they save together."""
        if self.count == 1:
            return mine
        answer = torch.tensor(mine)
        distributed.broadcast(answer, 0, group=self.patient)
        return bool(answer)

    def check_alike(self, mine: str, *, where: Path) -> None:
        """Refuses to go on where processes do not find the same there."""
        if self.count == 1:
            return
        found = [mine] * self.count
        distributed.all_gather_object(found, mine, group=self.patient)
        for rank, theirs in enumerate(found):
            if theirs != found[0]:
                self.refuse(
                    f"process 0 finds {found[0]}, and process {rank} {theirs}, in {where}: all machines have to see the same files. "
                    "Set XDG_CACHE_HOME, and --out, to a folder that they share, and run the same command again."
                )

    def refuse(self, reason: str) -> NoReturn:
        """All processes end, and the first alone says why. The others sleep until `torchrun` ends all with the first: who waits for it
        within gloo may be aborted as soon as it closes its connections, and pass for what failed."""
        if self.rank > 0:
            time.sleep(SLEEP)
            raise SystemExit(2)
        raise UserError(reason)

    @contextlib.contextmanager
    def alone(self, turn: AbstractContextManager[object]) -> Iterator[None]:
        """The first process enters, on behalf of all; a second entry would wait for the first."""
        with turn if self.rank == 0 else contextlib.nullcontext():
            self.wait()
            yield
            self.wait()

    def wait(self) -> None:
        """For all others to come here."""
        if self.count > 1:
            distributed.barrier(group=self.patient)

    def close(self) -> None:
        """Wait for the others, then part."""
        self.wait()
        if self.count > 1:
            distributed.destroy_process_group()


def place_among() -> tuple[int, int]:
    """This process's number among those that `torchrun` started, and how many they are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def among_others() -> Iterator[None]:
    """Ends the processes of `torchrun` with the words of one of them, which are also what it says last itself."""
    rank, count = place_among()
    try:
        yield
    except UserError as error:
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            told = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": told}))
        raise
    except KeyboardInterrupt:
        if rank > 0:
            raise SystemExit(130) from None
        raise
    except RuntimeError as error:
        # gloo's errors have no class of their own.
        if count == 1 or not (isinstance(error, distributed.DistError) or "/gloo/" in str(error)):
            raise
        if rank > 0:
            raise SystemExit(2) from None
        raise UserError("another process is gone; the same command goes on from the last checkpoint") from error


def join_ranks(*, device: str = "cpu", parts: int = 1, recompute: bool = False) -> Ranks:
    """The processes that `torchrun` started with this one; alone where it was not used."""
    _, count = place_among()
    if count == 1:
        return Ranks(parts=parts, recompute=recompute)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    with terminated_at_once():  # a wait within torch hears no handler of Python's, and there is nothing to save
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LIMIT)
        patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(rank=distributed.get_rank(), count=count, parts=parts, recompute=recompute, patient=patient)


def own_device(device: str) -> str:
    """Of the GPUs of a machine, the one of this process among those that `torchrun` started there."""
    place = os.environ.get("LOCAL_RANK")
    return device if place is None or device != "cuda" else f"cuda:{place}"
