"""Files that are there whole or not at all, and a check of free space before anything long begins."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from varbench.errors import CheckpointError, UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only once it is complete and on the disk; what had the name stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {path} could not be written, and what was there before is unchanged. "
                f"Free space on {path.parent} (now {_mib(shutil.disk_usage(path.parent).free)}) and run the same "
                "command again; it goes on from its last checkpoint."
            ) from error
        raise


def require_space(folder: Path, *, needed: int, purpose: str) -> None:
    """Refuse early what would fill the disk hours later."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{purpose} needs {_mib(needed)} on the disk of {folder}, and {_mib(free)} are free. Free some, or set "
            "XDG_CACHE_HOME to a folder on another disk."
        )


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


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
