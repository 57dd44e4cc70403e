"""Matrices in int8, through the torchao library: what a user can have of any checkpoint, without training or calibration.

Points: `w8` stores weights in int8 and multiplies in the compute type; `w8a8` also rounds activations to int8, a scale for
each token, and multiplies in int8. Whether either is faster depends on the device and is measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import PARTS, Parameter, Part, PartChange, Provenance, Setting, Settings, Transformed
from varbench.spec import ModelSpec

BESIDE = 5
"""Bytes beside each row of a matrix: a scale in float32, and the library's zero point in int8."""


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


def quantised(transformer: Any, *, point: str, parts: tuple[Part, ...]) -> Any:
    """The transformer with the matrices of these parts in int8. Biases stay as they are."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError("quant needs the torchao library: pip install 'varbench[quant]'")
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    class InInt8(torch.nn.Module):
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

    config = Int8WeightOnlyConfig() if point == "w8" else Int8DynamicActivationInt8WeightConfig()
    for part in parts:
        for holder, name in linears(transformer, part):
            setattr(holder, name, InInt8(getattr(holder, name)))
    return transformer


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=("w8", "w8a8"),
        parameters={
            "parts": Parameter(
                default="attention/ffn",
                help=f"whose matrices: any of {', '.join(PARTS)}, joined by /, as in attention/ffn",
            )
        },
        summary="matrices in int8 (torchao), with activations as they are or in int8 too",
        provenance=Provenance(
            kind="ours",
            note="rounding to the nearest by torchao's defaults, a scale for each row of a matrix and each token, nothing "
            "calibrated; w8 makes the matrix whole again in every product, which moves more bytes than the plan has",
        ),
    )


@hookimpl
def varbench_transform_model(setting: Setting, model: ModelSpec) -> Transformed:
    assert setting.point is not None
    point, parts = setting.point, parts_of(str(setting.parameters["parts"]))
    kind = "int8" if point == "w8a8" else None
    return Transformed(
        apply=lambda transformer: quantised(transformer, point=point, parts=parts),
        changes={
            part: PartChange(weight_type="int8", extra_bytes=BESIDE * rows_of(part, model), compute_type=kind)
            for part in parts
        },
    )
