"""States of a training: saved whole, and refused where they belong to another training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from varbench.base.whole_files import whole_file
from varbench.errors import CheckpointError


def save_state(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as file:
        _save(state, file)


def load_state(path: Path, *, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A saved training state, or None where there is none. A state of another training is refused, not mixed in."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a training state ({error}). Delete it to begin again."
        ) from error
    for name, wanted in identity.items():
        if state["identity"].get(name) != wanted:
            raise CheckpointError(
                f"{path} belongs to a training with {name} {state['identity'].get(name)!r}, and this one has "
                f"{wanted!r}. Use another --out, or delete the file to begin again."
            )
    return state


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    saver: Callable[..., None] = torch.save
    try:
        saver(state, file)
    except RuntimeError as error:
        # torch reports a failed write as a RuntimeError; writing one more byte brings out the system's own reason.
        file.write(b"\0" * 4096)
        file.flush()
        raise error
