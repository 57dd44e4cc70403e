"""From images to features: our own small network, or the published Inception through torch-fidelity. Never a download."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varbench.base.hashing import file_hash
from varbench.errors import CheckpointError, UserError
from varbench.quality.feature_cache import Arrays, cached_arrays
from varbench.quality.folding import folded
from varbench.quality.images import SomeImages
from varbench.quality.libraries import torch_fidelity
from varbench.quality.networks import Network

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_START = "6726825d"
"""The published file carries the start of its sha256 in its name."""

_BATCH = {"cpu": 64, "cuda": 256}
"""On a CPU the activations of a small batch stay in its cache."""


@dataclass(frozen=True)
class Extractor:
    """Features (N, D) and class logits (N, C) of uint8 images, and what figures made of them may be called."""

    name: str
    sha256: str
    suffix: str
    """Empty for the published Inception, whose figures have the plain names; else the data it was trained on."""
    dimensions: int
    forward: Callable[[Tensor], tuple[Tensor, Tensor]] = field(repr=False)
    device: str
    torchscript_folder: Path | None = None
    """Folder of `inception-2015-12-05.pt`, the same network in the form clean-fid reads; only for Inception."""

    @property
    def distance_name(self) -> str:
        """`FID` belongs to the published Inception; any other Fréchet distance says what its network was trained on."""
        return f"FD-{self.suffix}" if self.suffix else "FID"

    def named(self, figure: str) -> str:
        return f"{figure}-{self.suffix}" if self.suffix else figure


@dataclass(frozen=True)
class Features:
    """What a network saw in each image, float32."""

    features_ND: NDArray[np.float32]
    logits_NC: NDArray[np.float32]


def from_network(network: Network, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Extractor:
    """Our feature network (or judge). Figures are named after the data it was trained on, as in FD-shapes.

    Features that a distance is made of are float32: in bfloat16 it moves by a hundredth of its value.
    """
    module = folded(network.module).to(device, dtype)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.contiguous(memory_format=torch.channels_last).float() / 255
        features = module.features(pixels.to(dtype))
        return features.float(), module.logits(features).float()

    probe, _ = forward(torch.zeros(1, 3, network.config.side, network.config.side, dtype=torch.uint8, device=device))
    return Extractor(
        name=network.name,
        sha256=network.sha256,
        suffix=str(network.record.get("data_name", network.name)),
        dimensions=probe.shape[1],
        forward=forward,
        device=device,
    )


def from_inception(
    weights: str | Path, *, device: str = "cpu", torchscript_folder: str | Path | None = None
) -> Extractor:
    """The network of FID, from the published file that torch-fidelity would download; another file is refused."""
    weights = Path(weights)
    if not weights.is_file():
        raise CheckpointError(f"no Inception weights at {weights}. Give the path of {INCEPTION_FILE}.")
    found = file_hash(weights)
    if not found.startswith(INCEPTION_SHA256_START):
        raise CheckpointError(
            f"{weights} has a sha256 that starts with {found[:8]}, and the published Inception weights start with "
            f"{INCEPTION_SHA256_START}. Distances of another network are not FID; give the path of {INCEPTION_FILE}."
        )
    library = torch_fidelity()
    try:
        # torch-fidelity unpickles anything. A file that also loads this way holds nothing but tensors.
        torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{weights} holds more than tensors, or is torn: {str(error)[:200]}") from error
    module = library.utils.create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=device.startswith("cuda"),
        feature_extractor_weights_path=str(weights),
        verbose=False,
    )
    return Extractor(
        name="inception-v3-compat",
        sha256=found,
        suffix="",
        dimensions=2048,
        forward=module,
        device=device,
        torchscript_folder=Path(torchscript_folder) if torchscript_folder else None,
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions in float32 proper: by default a GPU rounds them to TF32, and scores would depend on the machine."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.inference_mode():
        yield


def extract(extractor: Extractor, images: SomeImages) -> Features:
    """Features of all images, in batches."""
    features, logits = [], []
    batch_size = _BATCH[torch.device(extractor.device).type]
    with full_precision():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(extractor.device)
            seen, scored = extractor.forward(batch)
            features.append(seen.float().cpu().numpy())
            logits.append(scored.float().cpu().numpy())
    found = Features(features_ND=np.concatenate(features), logits_NC=np.concatenate(logits))
    broken = int((~np.isfinite(found.features_ND)).any(axis=1).sum())
    if broken:
        raise UserError(f"{extractor.name} gave NaN or infinite features for {broken} of {len(images)} images.")
    return found


def extract_cached(extractor: Extractor, images: SomeImages, *, content: str, before: int | None = None) -> Features:
    """As `extract`, kept by the hash of the images' `content` and by the weights: for references, which every row is compared with."""

    def compute() -> Arrays:
        found = extract(extractor, images)
        return {"features": found.features_ND, "logits": found.logits_NC}

    stored = cached_arrays("features 2", extractor.name, extractor.sha256, content, compute=compute, before=before)
    return Features(features_ND=stored["features"], logits_NC=stored["logits"])
