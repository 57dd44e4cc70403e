"""What networks saw in some images: all that scores need of them, so that the images themselves can go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varbench.quality.extractors import Features


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    labels_N: NDArray[np.int64]
    seen: Features
    judged_N: NDArray[np.int64] | None
    """Classes by the judge; None without one."""
    clean_ND: NDArray[np.float32] | None
    """Features by clean-fid; None where it was not asked, or lacks."""

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        found: dict[str, NDArray[np.generic] | None] = {
            "features": self.seen.features_ND,
            "logits": self.seen.logits_NC,
            "judged": self.judged_N,
            "clean": self.clean_ND,
        }
        return {name: array for name, array in found.items() if array is not None}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.generic]], labels_N: NDArray[np.int64]) -> ImageFeatures | None:
        """None where no network looked."""
        if "features" not in arrays:
            return None
        seen = Features(
            features_ND=arrays["features"].astype(np.float32, copy=False),
            logits_NC=arrays["logits"].astype(np.float32, copy=False),
        )
        judged, clean = arrays.get("judged"), arrays.get("clean")
        return ImageFeatures(
            labels_N=labels_N,
            seen=seen,
            judged_N=None if judged is None else judged.astype(np.int64, copy=False),
            clean_ND=None if clean is None else clean.astype(np.float32, copy=False),
        )
