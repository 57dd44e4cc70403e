"""Keys and values in whole numbers of few bits, with a scale for each token and head, and attended to as floats.

Points: `b8`, and `b4` with two numbers in a byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import CacheStrategy, Provenance, Setting, Settings, StoredForm
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def encode(x_BHnc: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Whole numbers from minus `largest` to `largest`, and what one of them is worth."""
    import torch

    worth_BHn1 = x_BHnc.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / largest
    return (x_BHnc / worth_BHn1).round().to(torch.int8), worth_BHn1


def encode8(x_BHnc: Tensor) -> tuple[Tensor, ...]:
    return encode(x_BHnc, 127)


def encode4(x_BHnc: Tensor) -> tuple[Tensor, ...]:
    whole_BHnc, worth_BHn1 = encode(x_BHnc, 7)
    low, high = whole_BHnc.chunk(2, dim=-1)
    return (high << 4) | (low & 15), worth_BHn1


def decode8(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] * parts[1]


def decode4(parts: tuple[Tensor, ...]) -> Tensor:
    import torch

    # Shifted up and down again, so that the sign of the lower half spreads.
    return torch.cat(((parts[0] << 4) >> 4, parts[0] >> 4), dim=-1) * parts[1]


FORMS = {
    "b8": StoredForm(encode=encode8, decode=decode8, bits=8, extra_bytes=4),
    "b4": StoredForm(encode=encode4, decode=decode4, bits=4, extra_bytes=4),
}


class Quantised(CacheStrategy):
    capturable = True

    def __init__(self, form: StoredForm) -> None:
        self._form = form

    @property
    def form(self) -> StoredForm | None:
        return self._form


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=tuple(FORMS),
        default_points=("b8",),
        summary="stores keys and values in eight or four bits, with scales",
        provenance=Provenance(
            kind="ours",
            note=(
                "the plainest that works: symmetric, nearest, a float32 scale for each token and head; products are computed in "
                "the compute type, so it saves memory and costs time. There is no setting that changes nothing"
            ),
        ),
    )


@hookimpl
def varbench_cache_strategy(setting: Setting, model: ModelSpec) -> CacheStrategy:
    assert setting.point is not None
    if setting.point == "b4" and model.head_dim % 2:
        raise UserError(f"{model.name} has heads of {model.head_dim} numbers; two of four bits fill a byte, so give b8")
    return Quantised(FORMS[setting.point])
