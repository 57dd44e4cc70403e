"""Tensors by name from a file, whatever it was saved by; and what a file is where it is no checkpoint.

Pickles are only ever opened with weights-only loading.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from varbench.base.hashing import file_hash
from varbench.errors import CheckpointError

Tensors = dict[str, Tensor]

_NESTS = ("state_dict", "model")
"""Keys under which training scripts keep the weights beside other things."""

_REST = "rest"
"""Under which a file's metadata name another that holds the tensors it does not."""

_ARCHIVE, _PICKLE = b"PK\x03\x04", b"\x80"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def read_state(path: str | Path, *, part: str) -> Tensors:
    """Tensors of a checkpoint by name. `part` is the official trainer's key where the file is nested."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .pth or .safetensors checkpoint")
    head = _head(path)
    if _is_safetensors(head):
        return _names({**_rest_of(path), **_read_safetensors(path)})
    if not head.startswith((_ARCHIVE, _PICKLE)):
        raise CheckpointError(f"{path}: {_what_it_is(head)}")
    return _names(_unwrapped(_read_torch(path), part, path))


def write_what_differs(path: Path, rest: Path, *, into: IO[bytes], lies_in: Path) -> bool:
    """Writes a copy of a safetensors file with the tensors alone that are not the same in another one, which it names as it is
    reached from where the copy will lie; `read_state` puts both together. False, and nothing, where most differ."""
    from safetensors.torch import save

    own, others = _read_safetensors(path), _read_safetensors(rest)
    differing = {
        name: tensor
        for name, tensor in own.items()
        if name not in others or others[name].dtype != tensor.dtype or not torch.equal(others[name], tensor)
    }
    if (
        others.keys() - own.keys()
        or sum(t.nbytes for t in differing.values()) > sum(t.nbytes for t in own.values()) / 2
    ):
        return False
    named = {"path": os.path.relpath(rest, lies_in), "sha256": file_hash(rest)}
    into.write(save(differing, {**_told(path), _REST: json.dumps(named)}))
    return True


def complete(path: Path, folder: Path) -> Path:
    """A file as it is; of one that leaves tensors to another, a copy in this folder that holds them all."""
    from safetensors.torch import save_file

    told = _told(path) if _is_safetensors(_head(path)) else {}
    if told.pop(_REST, None) is None:
        return path
    whole = folder / path.name
    save_file({**_rest_of(path), **_read_safetensors(path)}, whole, metadata=told)
    return whole


def _rest_of(path: Path) -> Tensors:
    """Tensors that a file leaves to another one."""
    told = _told(path).get(_REST)
    if told is None:
        return {}
    named = json.loads(told)
    rest = path.parent / named["path"]
    if not rest.is_file() or file_hash(rest) != named["sha256"]:
        found = "another file" if rest.is_file() else "not there"
        raise CheckpointError(
            f"{path}: holds only what differs from {named['path']} beside it, which is {found}; "
            "`varbench export` makes one file of both"
        )
    return _read_safetensors(rest)


def _told(path: Path) -> dict[str, str]:
    """What the metadata of a safetensors file say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _cut_short(path, error) from error


def read_record(path: str | Path) -> dict[str, Any] | None:
    """How the weights in a file were trained, where varbench wrote it."""
    if not _is_safetensors(_head(Path(path))):
        return None
    record = _told(Path(path)).get("record")
    return json.loads(record) if record else None


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity. The two ends of a tensor tell, in one pass over it."""
    floats = ((name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel())
    return [name for name, tensor in floats if not torch.stack(tensor.detach().aminmax()).isfinite().all()]


def listed(names: list[str]) -> str:
    """The first few, so that a message stays readable."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _is_safetensors(head: bytes) -> bool:
    """It begins with the length of the header, then the header."""
    return head[8:9] == b"{"


def _what_it_is(head: bytes) -> str:
    if not head:
        return "an empty file; copy or download it again"
    if head.startswith(_LFS_POINTER):
        size = re.search(rb"^size (\d+)$", head, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"a git-LFS pointer, not the file{of} that it stands for; fetch that with `git lfs pull`"
    if _PAGE.match(head):
        return "a web page saved under this name, not a checkpoint; download the file that the page offers"
    return (
        f"neither a file of torch.save nor a .safetensors file (it begins with {head[:16]!r}); is it the right file, "
        "and complete?"
    )


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # of a path torch looks at the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, since it holds more than tensors and opening it could run code; save its state dict "
            "alone (torch.save(model.state_dict(), ...)) or as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _cut_short(path, error) from error


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _cut_short(path, error) from error


def _cut_short(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
    return CheckpointError(
        f"{path}: cut short or damaged: its {path.stat().st_size:,} bytes do not hold what they announce ({reason}); "
        "copy or download it again"
    )


def _unwrapped(data: Any, part: str, path: Path) -> Tensors:
    """The state dict within what training scripts save beside it."""
    if isinstance(data, Mapping) and isinstance(data.get("trainer"), Mapping):
        if part not in data["trainer"]:
            raise CheckpointError(
                f"{path}: saved by a trainer, but without {part!r}; it has {', '.join(data['trainer'])}"
            )
        data = data["trainer"][part]
    while isinstance(data, Mapping) and (nest := next((n for n in _NESTS if isinstance(data.get(n), Mapping)), None)):
        data = data[nest]
    if not isinstance(data, Mapping) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        held = f"; it holds {', '.join(map(str, list(data)[:8]))}" if isinstance(data, Mapping) and data else ""
        raise CheckpointError(
            f"{path}: holds no state dict: expected tensors by name, plain, under 'state_dict' or 'model', or an "
            f"official trainer's file{held}"
        )
    return {str(name): tensor for name, tensor in data.items()}


def _names(state: Tensors) -> Tensors:
    """Without the prefixes that torch.compile and distributed training put before names."""
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}
