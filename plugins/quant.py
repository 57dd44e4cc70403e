"""Matrices in eight bits, through the torchao library: what a user can have of any checkpoint, without training or calibration.

Points: `w8` stores weights in int8 and multiplies in the compute type; `w8a8` also rounds activations to int8, a scale for
each token, and multiplies in int8; `fp8` has float8 (e4m3) in both places, where a GPU multiplies it. Whether any of them is
faster depends on the device and is measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import PARTS, Parameter, Part, PartChange, Provenance, Setting, Settings, Transformed
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

STORED = {"w8": "int8", "w8a8": "int8", "fp8": "float8_e4m3fn"}
BESIDE = {"int8": 5, "float8_e4m3fn": 4}
"""Bytes beside each row of a matrix: a scale in float32, and of int8 the library's zero point in int8."""
FLOAT8_SINCE = (8, 9)
"""Compute capability of the first GPUs that multiply float8."""


def parts_of(text: str) -> tuple[Part, ...]:
    given = text.split("/")
    found = tuple(part for part in PARTS if part in given)
    if len(found) != len(given):
        raise UserError(f"parts is {text!r}; give one or more of {', '.join(PARTS)}, joined by /")
    return found


def rows_of(part: Part, model: ModelSpec) -> int:
    """Rows of all matrices of a part, each of which has a scale of its own."""
    width, sixes = model.width, 1 if model.shared_adaln else model.depth
    return {
        "attention": model.depth * 4 * width,
        "ffn": model.depth * (model.hidden + width),
        "conditioning": (6 * sixes + 2) * width,
        "ends": width + model.tokenizer.vocabulary,
    }[part]


def linears(transformer: Any, part: Part) -> Iterator[tuple[Any, str]]:
    """Each linear layer of a part, as the module that holds it and its name there."""
    if part == "ends":
        yield from ((transformer, "word_embed"), (transformer, "head"))
    if part == "conditioning":
        holders = [transformer.head_nm, *transformer.blocks, transformer]
        for holder in holders:
            yield from ((getattr(holder, name), "1") for name in ("ada_lin", "shared_ada_lin") if hasattr(holder, name))
    for block in transformer.blocks:
        if part == "attention":
            yield from ((block.attn, "mat_qkv"), (block.attn, "proj"))
        elif part == "ffn":
            yield from ((block.ffn, "fc1"), (block.ffn, "fc2"))


def check_device(device: Any) -> None:
    """Refuse one that does not multiply float8. Torch's CPU can, slower than anything, and the library refuses it too."""
    import torch

    if device.type != "cuda":
        found = "a CPU"
    elif torch.cuda.get_device_capability(device) >= FLOAT8_SINCE:
        return
    else:
        found = torch.cuda.get_device_name(device)
    raise UserError(
        f"quant@fp8 needs a GPU of compute capability {'.'.join(map(str, FLOAT8_SINCE))} or more, and this is {found}; "
        "give quant@w8 or quant@w8a8 here"
    )


def check_matrix(matrix: Tensor, name: str) -> None:
    """Refuse what the library would leave as it is, or stop at in words of its own."""
    if str(matrix.dtype) != "torch.bfloat16":
        raise UserError("quant@fp8 has a scale for each token beside bfloat16 alone; give --dtype bfloat16")
    if any(side % 16 for side in matrix.shape):
        sides = " x ".join(map(str, matrix.shape))
        raise UserError(
            f"quant@fp8 takes matrices of multiples of 16, and {name} is {sides}; leave its part out of parts"
        )


def quantised(transformer: Any, *, point: str, parts: tuple[Part, ...]) -> Any:
    """The transformer with the matrices of these parts in eight bits. Biases stay as they are."""
    if point == "fp8":
        check_device(transformer.pos_1LC.device)
    if importlib.util.find_spec("torchao") is None:
        raise UserError("quant needs the torchao library: pip install 'varbench[quant]'")
    import torch
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    class InEightBits(torch.nn.Module):
        """A linear layer whose matrix lies in plain buffers, and is the library's tensor while it is multiplied."""

        def __init__(self, linear: Any) -> None:
            super().__init__()
            quantize_(linear, config)
            weight = linear.weight.detach()
            names, self._form = weight.__tensor_flatten__()
            for name in names:
                self.register_buffer(name, getattr(weight, name))
            self._names, self._make, self._shape = names, type(weight).__tensor_unflatten__, weight.shape
            self.bias = linear.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = {name: getattr(self, name) for name in self._names}
            weight = self._make(inner, self._form, self._shape, (self._shape[1], 1))
            return torch.nn.functional.linear(x, weight, self.bias)

    config = {
        "w8": Int8WeightOnlyConfig,
        "w8a8": Int8DynamicActivationInt8WeightConfig,
        "fp8": lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    }[point]()
    for part in parts:
        for holder, name in linears(transformer, part):
            linear = getattr(holder, name)
            if point == "fp8":
                check_matrix(linear.weight, f"a matrix of {part}")
            setattr(holder, name, InEightBits(linear))
    return transformer


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=tuple(STORED),
        default_points=("w8", "w8a8"),
        parameters={
            "parts": Parameter(
                default="attention/ffn",
                help=f"whose matrices: any of {', '.join(PARTS)}, joined by /, as in attention/ffn",
            )
        },
        summary="matrices in int8 or float8 (torchao), with activations as they are or in eight bits too",
        provenance=Provenance(
            kind="ours",
            note="rounding to the nearest by torchao's defaults, a scale for each row of a matrix and each token, nothing "
            "calibrated; w8 makes the matrix whole again in every product, which moves more bytes than the plan has; fp8 was not "
            "run on a card yet, only its layers on a CPU, and no default run has it: it needs a GPU of compute capability 8.9",
        ),
    )


@hookimpl
def varbench_transform_model(setting: Setting, model: ModelSpec) -> Transformed:
    assert setting.point is not None
    point, parts = setting.point, parts_of(str(setting.parameters["parts"]))
    stored = STORED[point]
    kind = None if point == "w8" else stored
    return Transformed(
        apply=lambda transformer: quantised(transformer, point=point, parts=parts),
        changes={
            part: PartChange(weight_type=stored, extra_bytes=BESIDE[stored] * rows_of(part, model), compute_type=kind)
            for part in parts
        },
    )
