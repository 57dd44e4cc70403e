"""Which class an image shows, by the judge: quickly in bfloat16, and in float32 wherever two classes came close."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base.instructions import fast_bfloat16
from varbench.quality.extractors import Features, extract, from_network
from varbench.quality.images import Images
from varbench.quality.networks import Network

CLOSE = 1.0
"""Logits of the first two classes nearer than this are looked at again; bfloat16 moves them by a tenth of it."""


class Judging:
    """The judge's answers. They are float32's own: a class is told in bfloat16 only where rounding cannot change it."""

    def __init__(self, network: Network, *, device: str, quick: bool | None = None) -> None:
        self._exact = from_network(network, device=device)
        wanted = (device != "cpu" or fast_bfloat16()) if quick is None else quick
        self._quick = from_network(network, device=device, dtype=torch.bfloat16) if wanted else None

    def classes(self, images: Images) -> NDArray[np.int64]:
        if self._quick is None:
            return _strongest(extract(self._exact, images))
        quick = extract(self._quick, images)
        found, best = _strongest(quick), np.sort(quick.logits_NC, axis=1)[:, -2:]
        close = best[:, -1] - best[:, 0] < CLOSE
        if close.any():
            found[close] = _strongest(extract(self._exact, images[close]))
        return found


def _strongest(seen: Features) -> NDArray[np.int64]:
    found: NDArray[np.int64] = seen.logits_NC.argmax(axis=1)
    return found
