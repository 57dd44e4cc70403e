"""The published protocol with a small model and a small network in the place of Inception, for every process of a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from varbench.base.hashing import file_hash
from varbench.plan import presets, protocols
from varbench.plan.protocols import PublishedFile
from varbench.quality import extractors
from varbench.run import scoring_networks
from varbench.spec import ModelSpec, TokenizerSpec

NAME, MODEL = "imagenet256-50k", "var-d16"
SEEN, CLASSES = 48, 1008
"""Features of an image, where Inception has 2,048, and its classes."""
TOKENIZER = TokenizerSpec(channels=32, multipliers=(1, 1), blocks=1, code_dim=8, vocabulary=1024)
SPEC = ModelSpec(name=MODEL, sides=(1, 2, 3, 4), depth=4, width=32, heads=2, classes=10, tokenizer=TOKENIZER)
"""Of more codes than the protocol's top-k."""


def take(folder: Path) -> None:
    """What lies in this folder is the protocol's from now on, by hash and by size."""

    def ours(file: PublishedFile) -> PublishedFile:
        path = folder / file.name
        return replace(file, sha256=file_hash(path), sure=True) if path.is_file() else file

    presets._PRESETS[MODEL] = replace(presets.preset(MODEL), spec=SPEC)
    known = protocols.protocol(NAME)
    files = {option: ours(file) for option, file in known.files.items()}
    protocols._PROTOCOLS[NAME] = replace(known, weights={MODEL: ours(known.weights[MODEL])}, files=files)
    look_with_little(files["inception"].sha256)


def look_with_little(published: str | None) -> None:
    """A file of this hash passes for the published Inception's weights, and a network that takes no time for Inception."""
    if published is not None:
        extractors.INCEPTION_SHA256_START = published[:8]
    utils = SimpleNamespace(create_feature_extractor=lambda *_, **__: _look)
    extractors.torch_fidelity = lambda: SimpleNamespace(utils=utils)  # type: ignore[assignment]
    found = extractors.from_inception

    def small(*given: Any, **named: Any) -> extractors.Extractor:
        return replace(found(*given, **named), dimensions=SEEN)

    scoring_networks.from_inception = small


def _look(images: Tensor) -> tuple[Tensor, Tensor]:
    features = adaptive_avg_pool2d(images.float() / 255, (4, 4)).flatten(1)
    return features, pad(torch.log_softmax(8 * features, dim=1), (0, CLASSES - SEEN), value=-100.0)
