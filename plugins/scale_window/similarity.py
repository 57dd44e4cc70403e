"""How far a layer's keys move from one scale to the next. Letters: B rows, H heads, l tokens of a scale, c head size."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from varbench.engine.calibration import observe, written_layers
from varbench.errors import UserError

if TYPE_CHECKING:
    from varbench import Pipeline

IMAGES, SEED = 8, 20_251


def distance(earlier_BHlc: Tensor, later_BHlc: Tensor) -> float:
    """Mean L2 distance of a scale's keys from those of the one before, interpolated to the same places of the image."""
    batch, heads, count, size = earlier_BHlc.shape
    before, after = math.isqrt(count), math.isqrt(later_BHlc.shape[2])
    map_Nchw = earlier_BHlc.float().transpose(2, 3).reshape(batch * heads, size, before, before)
    resized = F.interpolate(map_Nchw, size=(after, after), mode="bilinear").flatten(2).transpose(1, 2)
    return float((resized.view_as(later_BHlc) - later_BHlc.float()).norm(dim=-1).mean())


def farthest(pipe: Pipeline, *, count: int | None, beyond: float) -> dict[str, Any]:
    """Distance of each layer, and the layers in which it is largest; without a number of them, all beyond a distance.

    The first two scales are left out: one and four tokens say little. The last one's keys are never stored.
    """
    model = pipe.model
    found: dict[int, list[float]] = defaultdict(list)
    previous: dict[int, Tensor] = {}

    def look(layer: int, scale: int, keys_BHnc: Tensor, queries_BHlc: Tensor) -> None:
        own = keys_BHnc[:, :, -model.tokens[scale] :]
        if 2 <= scale < model.scales - 1:
            found[layer].append(distance(previous[layer], own))
        previous[layer] = own.clone()

    labels = [image * model.classes // IMAGES for image in range(IMAGES)]
    observe(pipe, labels, seed=SEED, look=look)
    distances = [sum(found[layer]) / len(found[layer]) for layer in range(model.depth)]
    by_distance = sorted(range(model.depth), key=lambda layer: -distances[layer])
    demanding = sorted(
        [layer for layer in by_distance if distances[layer] > beyond] if count is None else by_distance[:count]
    )
    if not demanding:
        raise UserError(
            f"threshold is {beyond}, and keys lie no farther than {max(distances):.3g} in any layer; give less"
        )
    return {
        "parameters": {"demanding": written_layers(demanding)},
        "distance": [round(value, 6) for value in distances],
        "measure": "mean L2 distance of keys from those of the scale before, interpolated bilinearly; from the third scale on",
        "images": IMAGES,
        "seed": SEED,
    }
