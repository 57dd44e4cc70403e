"""Images as bytes, and as pictures to look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_ACROSS = 8


def to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Floats in [0, 1], (N, 3, S, S), to bytes by rounding. The only place where varbench does so."""
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise UserError(f"{broken} of {len(images)} images hold NaN or infinite pixels; nothing can be scored.")
    scaled = images.detach().float().mul(255).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).cpu().numpy()


def pictures(images: torch.Tensor) -> list[Image]:
    """One picture of PIL for each of the images (N, 3, S, S)."""
    from PIL import Image

    return [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in to_uint8(images)]


def sheet(images: torch.Tensor) -> Image:
    """All of them in one picture, a few across."""
    from PIL import Image

    found = pictures(images)
    across = min(_ACROSS, len(found))
    width, height = found[0].size
    page = Image.new("RGB", (across * width, math.ceil(len(found) / across) * height), "white")
    for place, picture in enumerate(found):
        page.paste(picture, (place % across * width, place // across * height))
    return page
