"""The two small networks that look at images offline, and their files.

`features` is a plain convolutional network whose 64 penultimate values are what FD-shapes is measured on. `judge` says
which class a sample shows. They share no architecture, so that a fault of one does not vouch for the other.
Both take floats in [0, 1], (N, 3, S, S), at any side. Widths are part of the file, so a file says all that loads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from varbench.base.hashing import file_hash
from varbench.errors import CheckpointError, did_you_mean

Kind = Literal["features", "judge"]

FEATURES = 64
THUMBNAIL = 4
DEGRADATIONS = 2
"""How much noise and how much blur the feature network is asked to tell while it is trained."""


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build the network that a file's tensors belong to."""

    kind: Kind
    classes: tuple[str, ...]
    side: int
    width: int


@dataclass(frozen=True)
class Network:
    """A frozen network and where it came from. Figures made with it carry `sha256`, the hash of its file."""

    module: FeatureNetwork | Judge
    config: NetworkConfig
    sha256: str
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.config.kind}-{self.sha256[:8]}"


class FeatureNetwork(nn.Module):
    """Three levels of two 3x3 convolutions with batch normalisation, mean over places, 64 features, heads.

    A classifier alone forgets all that does not tell classes apart. The other two heads, a 4x4 thumbnail and the amount
    of noise and blur, are trained with it so that the features keep colour, place and sharpness too.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width, 2 * config.width, 4 * config.width]
        layers: list[nn.Module] = []
        before = 3
        for level, width in enumerate(widths):
            for conv in range(2):
                stride = 2 if level and conv == 0 else 1
                layers += [
                    nn.Conv2d(before, width, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                before = width
        self.body = nn.Sequential(*layers)
        # Mean over each quarter of the image, so that place survives the pooling.
        self.project = nn.Linear(4 * before, FEATURES)
        self.classify = nn.Linear(FEATURES, len(config.classes))
        self.thumbnail = nn.Linear(FEATURES, 3 * THUMBNAIL**2)
        self.degradation = nn.Linear(FEATURES, DEGRADATIONS)

    def features(self, images: Tensor) -> Tensor:
        maps = self.body(images * 2 - 1)
        features: Tensor = self.project(F.adaptive_avg_pool2d(maps, 2).flatten(1))
        return features

    def logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(F.relu(features))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, thumbnail (N, 3, 4, 4) in [0, 1], degradation (N, 2): what training asks for."""
        features = self.features(images)
        thumbnail = self.thumbnail(features).view(-1, 3, THUMBNAIL, THUMBNAIL)
        return self.logits(features), thumbnail, self.degradation(features)


class Judge(nn.Module):
    """2x2 patches, then residual blocks normalised before each convolution, and the strongest answer over all places."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, width, 3, padding=1),
            JudgeBlock(width),
            nn.Conv2d(width, 2 * width, 2, 2),
            JudgeBlock(2 * width),
            JudgeBlock(2 * width),
            nn.BatchNorm2d(2 * width),
        )
        self.classify = nn.Linear(2 * width, len(config.classes))

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(F.gelu(self.body(images * 2 - 1)), 1).flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


class JudgeBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        hidden = self.conv1(F.gelu(self.norm1(maps)))
        out: Tensor = maps + self.conv2(F.gelu(self.norm2(hidden)))
        return out


_KINDS: dict[Kind, type[FeatureNetwork | Judge]] = {"features": FeatureNetwork, "judge": Judge}
_WIDTHS: dict[Kind, int] = {"features": 24, "judge": 48}


def default_config(kind: str, *, classes: tuple[str, ...], side: int) -> NetworkConfig:
    """The size that ships, for a data set with these classes at this side."""
    if kind not in get_args(Kind):
        raise CheckpointError(f"there is no network {kind!r}.{did_you_mean(kind, get_args(Kind))}")
    known = cast(Kind, kind)
    return NetworkConfig(kind=known, classes=classes, side=side, width=_WIDTHS[known])


def build(config: NetworkConfig) -> FeatureNetwork | Judge:
    return _KINDS[config.kind](config)


def network_bytes(config: NetworkConfig, module: nn.Module, record: dict[str, Any]) -> bytes:
    """A safetensors file: 16-bit weights, and the config and training record as JSON in its metadata."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }
    return save(tensors, metadata={"config": json.dumps(asdict(config)), "record": json.dumps(record)})


def load_network(path: str | Path, *, device: str = "cpu", sha256: str | None = None) -> Network:
    """The network in a file, frozen and in float32. With `sha256`, a file with another hash is refused."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no network at {path}. Train one with `varbench train {path.stem}`.")
    found = file_hash(path)
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{path} has the sha256 {found}, and {sha256} was asked for. Take the file that was meant."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored = json.loads(metadata["config"])
        config = NetworkConfig(**{**stored, "classes": tuple(stored["classes"])})
        module = build(config)
        module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not a network written by `varbench train features|judge`: {reason}"
        ) from error
    module.eval().requires_grad_(False)
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack `memory_format`
    return Network(module=module, config=config, sha256=found, record=json.loads(metadata.get("record", "{}")))
