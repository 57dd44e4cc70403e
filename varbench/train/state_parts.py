"""A training's state that several processes write together, each a share of it, as a folder of `torch.distributed.checkpoint`.

    NAME.state.parts/1200/*.distcp     tensors, each once, whichever process wrote it
    NAME.state.parts/1200/told.json    what belongs to them; written last, so that a folder without it was never whole

The one before goes when the next is whole. Any number of processes reads it, one alone too.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varbench.base.whole_files import write_whole
from varbench.train.optimiser import RunningMean, restore
from varbench.train.ranks import Ranks

TOLD = "told.json"


@dataclass(frozen=True)
class Numbers:
    """All tensors that a training changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    mean: RunningMean

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        restore(self.optimizer, state["optimizer"])
        self.mean.load(state["mean"])

    def in_place(self) -> dict[str, Tensor]:
        """By name, and where they lie."""
        means = {f"mean.{place}": tensor for place, tensor in enumerate(self.mean.state())}
        return {**{f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}, **means}

    def of_optimizer(self) -> dict[str, Tensor]:
        """Of the parameters that had a gradient yet."""
        found = self.optimizer.state_dict()["state"]
        return {f"optimizer.{place}.{name}": tensor for place, one in found.items() for name, tensor in one.items()}


def folder_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def latest(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder of the last state that was written whole, and what belongs to it."""
    whole = sorted(folder_of(path).glob(f"*/{TOLD}"), key=lambda told: int(told.parent.name))
    if not whole:
        return None
    told: dict[str, Any] = json.loads(whole[-1].read_text())
    return whole[-1].parent, told


def save_parts(path: Path, numbers: Numbers, told: dict[str, Any], *, ranks: Ranks) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = folder_of(path)
    place = folder / str(told["step"])
    tensors = {**numbers.in_place(), **numbers.of_optimizer()}
    try:
        save(tensors, checkpoint_id=place, process_group=ranks.patient)
    except CheckpointException as error:  # the same in all of them, whichever could not write
        ranks.refuse(f"{place} cannot be written ({_why(error)}). The state before it is kept.")
    if ranks.rank > 0:
        return
    write_whole(place / TOLD, json.dumps(told).encode())
    path.unlink(missing_ok=True)  # of one process, before
    for other in folder.iterdir():
        if other != place:
            shutil.rmtree(other)


def load_parts(place: Path, numbers: Numbers, *, ranks: Ranks) -> None:
    """Into the tensors that there are, so that no process holds a second copy of them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    device = next(numbers.module.parameters()).device
    try:
        held = FileSystemReader(place).read_metadata().state_dict_metadata
        made = {
            name: torch.empty(told.size, dtype=told.properties.dtype, device=device)
            for name, told in held.items()
            if name.startswith("optimizer.") and isinstance(told, TensorStorageMetadata)
        }
        tensors = {**numbers.in_place(), **made}
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        load(tensors, checkpoint_id=place, process_group=ranks.patient, no_dist=ranks.count == 1)
    except (CheckpointException, Exception) as error:
        ranks.refuse(f"{place} cannot be read as a training state ({_why(error)}). Delete it to begin again.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in made.items():
        _, index, key = name.split(".", 2)
        state.setdefault(int(index), {})[key] = tensor
    restore(numbers.optimizer, {"state": state, "param_groups": numbers.optimizer.state_dict()["param_groups"]})


def _why(error: BaseException) -> str:
    """In a line. What went wrong in each of several processes comes with where it did."""
    failures = [failure[0] for failure in getattr(error, "failures", {}).values()] or [error]
    return "; ".join(sorted({f"{type(one).__name__}: {one}".removesuffix(": ") for one in failures}))


def delete(path: Path) -> None:
    """The states of a training that is at its end, or would only lead to one again, in either form."""
    path.unlink(missing_ok=True)
    shutil.rmtree(folder_of(path), ignore_errors=True)
