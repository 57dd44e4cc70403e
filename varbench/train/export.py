"""Trained weights as small safetensors files: 16-bit, official names, with their geometry and history inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import nn

from varbench.base.whole_files import whole_file
from varbench.errors import UserError
from varbench.model.state_files import listed, not_finite
from varbench.model.transformer import Transformer
from varbench.spec import ModelSpec

Module = TypeVar("Module", bound=nn.Module)


def bf16_(module: Module) -> Module:
    """Round the weights to what the file will hold, so that figures taken afterwards are the file's own."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    return module


def export(module: nn.Module, path: Path, *, spec: ModelSpec, record: dict[str, Any]) -> None:
    """Write the weights in bfloat16; `spec` and `record` as JSON in the metadata. Weights that diverged are not written."""
    tensors = {
        name: (tensor.bfloat16() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }
    if broken := not_finite(tensors.items()):
        raise UserError(
            f"the training diverged: {len(broken)} of {len(tensors)} tensors hold NaN or infinite values "
            f"({listed(broken)}). {path} is not written; use a smaller learning rate, --rate."
        )
    if isinstance(module, Transformer):
        # The official files tell their scales by this buffer.
        tensors["lvl_1L"] = torch.repeat_interleave(torch.arange(spec.scales), torch.tensor(spec.tokens))[None]
    metadata = {"spec": json.dumps(spec.to_json()), "record": json.dumps(record)}
    with whole_file(path) as file:
        file.write(save(tensors, metadata=metadata))
