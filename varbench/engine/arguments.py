"""What a user hands to a pipeline, as the tensors that it works on; or an error that says what to give instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varbench.errors import UserError
from varbench.spec import ModelSpec

_OVER = 1e-3
"""How far pixels may lie beyond -1 and 1: rounding, and no other range."""


def images_given(images: Any, model: ModelSpec) -> Tensor:
    """Floats (B, 3, S, S) in [-1, 1]; bytes and other ranges are refused, since they would be encoded as white."""
    found = _tensor(images, "images")
    side = model.image_side
    if found.ndim != 4 or tuple(found.shape[1:]) != (3, side, side) or not len(found):
        raise UserError(f"images have shape {tuple(found.shape)}; {model.name} takes (B, 3, {side}, {side})")
    if not found.is_floating_point():
        raise UserError(
            f"images are {_dtype(found)}; give floats in [-1, 1]: of bytes, images.to(torch.float32) / 127.5 - 1"
        )
    low, high = (float(end) for end in found.aminmax())
    if not (-1 - _OVER <= low and high <= 1 + _OVER):
        raise UserError(
            f"images reach from {low:g} to {high:g}; give floats in [-1, 1]: images / 127.5 - 1 where they reach to 255"
        )
    return found.float()


def tokens_given(tokens: Any, model: ModelSpec) -> Tensor:
    """Codes (B, L) of all scales."""
    found = _whole_numbers(tokens, "tokens")
    vocabulary = model.tokenizer.vocabulary
    if found.ndim != 2 or found.shape[1] != model.length:
        raise UserError(f"tokens have shape {tuple(found.shape)}; {model.name} takes (B, {model.length})")
    if found.numel() and not (0 <= int(found.min()) and int(found.max()) < vocabulary):
        raise UserError(f"tokens reach from {int(found.min())} to {int(found.max())}; codes are 0 to {vocabulary - 1}")
    return found


def labels_given(labels: Any, model: ModelSpec) -> Tensor:
    """Class numbers (B,); checked where they lie: a look at numbers on a GPU waits for all that was asked of it before."""
    found = _whole_numbers(labels, "labels")
    if found.ndim != 1 or not len(found):
        raise UserError(f"labels must be a non-empty list of class numbers, not shape {tuple(found.shape)}")
    wrong = found[(found < 0) | (found > model.classes)]
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])} is not a class of {model.name}: "
            f"classes are 0 to {model.classes - 1}, and {model.classes} is 'no class'"
        )
    return found


def check_filters(model: ModelSpec, *, top_k: int, top_p: float) -> None:
    vocabulary = model.tokenizer.vocabulary
    if not 0 <= top_p <= 1:
        raise UserError(f"top_p is {top_p}; give a share between 0 (off) and 1")
    if not 0 <= top_k <= vocabulary:
        raise UserError(f"top_k is {top_k}, and {model.name} has {vocabulary} codes; give 0 (off) to {vocabulary}")


def _whole_numbers(given: Any, what: str) -> Tensor:
    found = _tensor(given, what)
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise UserError(f"{what} are {_dtype(found)}; give whole numbers")
    return found.long()


def _tensor(given: Any, what: str) -> Tensor:
    """Of a tensor, an array of numpy, or lists."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{what} cannot be read as numbers ({reason}); give a tensor, an array or a list") from error


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
