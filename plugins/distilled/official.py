"""The authors' checkpoints of distilled VAR models. We have not seen one: names and nests are those that their code reads."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from varbench.errors import CheckpointError
from varbench.spec import ModelSpec

from .network import empty_student

NESTS = (("trainer", "ema_parameters"), ("trainer", "var_wo_ddp"), ())
"""Where the weights lie: the running mean, which the authors sample from, else the last ones, else bare."""
DERIVED = re.compile(r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias)$")


def official_state(path: str, model: ModelSpec) -> dict[str, Tensor]:
    """Every tensor of the student must be there, in its shape."""
    try:
        whole: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a torch checkpoint: {error}") from error
    found = next(state for nest in NESTS if (state := _inside(whole, nest)) is not None)
    state = {name: value.float() for name, value in found.items() if not DERIVED.match(name)}
    wanted = {name: tuple(value.shape) for name, value in empty_student(model).state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if wrong := sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name)):
        first = wrong[0]
        raise CheckpointError(
            f"{path} does not fit {model.name}: {len(wrong)} tensors differ, as {first}, which is "
            f"{shapes.get(first, 'missing')} there and {wanted.get(first, 'unknown')} here"
        )
    return state


def _inside(whole: Any, nest: tuple[str, ...]) -> dict[str, Tensor] | None:
    for key in nest:
        whole = whole.get(key) if isinstance(whole, dict) else None
    tensors = isinstance(whole, dict) and all(isinstance(value, Tensor) for value in whole.values())
    return whole if tensors else None
