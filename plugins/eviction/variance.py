"""Which heads' queries all look at the same entries. Letters: B rows, H heads, n entries, L queries, c head size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varbench.engine.calibration import observe, written_masks

if TYPE_CHECKING:
    from varbench import Pipeline

IMAGES, SEED = 8, 20_253


def column_variance(keys_BHnc: Tensor, queries_BHLc: Tensor, softmax_scale: float) -> Tensor:
    """(H): the variance over queries of what each entry is paid, summed over entries, and the mean over rows."""
    scores_BHLn = queries_BHLc.float() @ keys_BHnc.float().transpose(2, 3) * softmax_scale
    return scores_BHLn.softmax(dim=-1).var(dim=2, correction=0).sum(dim=-1).mean(dim=0)


def least_varied(pipe: Pipeline, *, share: float) -> dict[str, Any]:
    """The share of all heads, over all layers, whose attention varies least in the last step."""
    model = pipe.model
    found = torch.zeros(model.depth, model.heads)

    def look(layer: int, scale: int, keys_BHnc: Tensor, queries_BHLc: Tensor) -> None:
        if scale == model.scales - 1:
            attention: Any = pipe.backbones["main"].blocks[layer].attn
            found[layer] = column_variance(keys_BHnc, queries_BHLc, attention.softmax_scale).cpu()

    labels = [image * model.classes // IMAGES for image in range(IMAGES)]
    observe(pipe, labels, seed=SEED, look=look)
    heads = [(layer, head) for layer in range(model.depth) for head in range(model.heads)]
    ordered = sorted(heads, key=lambda place: found[place].item())
    contextual = ordered[: round(share * len(heads))]
    return {
        "parameters": {
            "contextual": written_masks(
                [head for at, head in contextual if at == layer] for layer in range(model.depth)
            )
        },
        "variance": [[round(value, 8) for value in layer] for layer in found.tolist()],
        "measure": "variance over the last step's queries of what each entry is paid, summed over entries, mean over rows",
        "images": IMAGES,
        "seed": SEED,
    }
