"""Training of the feature network and of the judge, on any image set, on CPU or GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from varbench.data.image_set import ImageSet
from varbench.errors import UserError
from varbench.quality.networks import (
    THUMBNAIL,
    FeatureNetwork,
    Judge,
    NetworkConfig,
    build,
    default_config,
    network_bytes,
)

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the number of steps and the latest figures."""

_BATCH = 128
_POOL = 131_072
_HELD_OUT = 2_000
_PEAK_RATE = 2e-3
_NOISE = 0.12
_BLUR_PIXELS = 1.0


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network: write `file_bytes()` to disk, and `varbench.quality.networks.load_network` reads it back."""

    module: FeatureNetwork | Judge
    config: NetworkConfig
    record: dict[str, Any]

    def file_bytes(self) -> bytes:
        return network_bytes(self.config, self.module, self.record)


def train_classifier(
    kind: str,
    *,
    data: ImageSet,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    progress: OnStep | None = None,
) -> TrainedNetwork:
    """Train `features` or `judge` on the training range of `data`; accuracy is measured on its validation range."""
    if steps < 1:
        raise UserError(f"training needs at least 1 step, and steps is {steps}.")
    started = time.perf_counter()
    config = default_config(kind, classes=data.classes, side=data.side)
    torch.manual_seed(seed)
    module = build(config).train()
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack `memory_format`
    optimizer = torch.optim.AdamW(module.parameters(), lr=_PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))

    wanted = data.training[: min(len(data.training), _POOL, steps * _BATCH)]
    images = torch.from_numpy(data.images(wanted)).to(device)
    labels = torch.from_numpy(data.labels(wanted)).to(device)
    rng = np.random.RandomState(seed)
    on_device = torch.Generator(device).manual_seed(seed)
    loss = torch.zeros(())
    for step in range(steps):
        rows = torch.from_numpy(rng.randint(len(wanted), size=_BATCH)).to(device)
        batch, amounts = degrade(images[rows].float() / 255, on_device)
        loss = _loss(module, batch, images[rows].float() / 255, labels[rows], amounts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(f"{kind}: the loss is {value} at step {step + 1} of {steps}; nothing is written.")
            if progress is not None:
                progress(step + 1, steps, {"loss": value})

    module.eval().requires_grad_(False)
    record = {
        "kind": kind,
        "data_name": data.name,
        "data": data.fingerprint,
        "seed": seed,
        "steps": steps,
        "batch": _BATCH,
        "final_loss": float(loss.detach()),
        "held_out_accuracy": _accuracy(module, data, device),
        "seconds": round(time.perf_counter() - started, 1),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "torch": torch.__version__,
    }
    return TrainedNetwork(module=module, config=config, record=record)


def degrade(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the images blurred, half with noise, independently; and how much of each, (N, 2) in [0, 1]."""
    amounts = torch.rand(len(images), 2, generator=generator, device=images.device)
    amounts = amounts**2 * (torch.rand(amounts.shape, generator=generator, device=images.device) < 0.5)
    blur, noise = amounts[:, 0].view(-1, 1, 1, 1), amounts[:, 1].view(-1, 1, 1, 1)
    out = torch.lerp(images, gaussian_blur(images, _BLUR_PIXELS), blur)
    grain = torch.randn(images.shape, generator=generator, device=images.device)
    return out + _NOISE * noise * grain, amounts


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur of the given standard deviation in pixels, edges repeated. As matrix products: fast on CPU and GPU alike."""
    return (
        _blur_matrix(images.shape[-2], sigma).to(images) @ images @ _blur_matrix(images.shape[-1], sigma).to(images).T
    )


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """(side, side): what each pixel of a blurred line takes from the line's pixels."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    sources = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)
    return torch.zeros(side, side).scatter_add_(1, sources, (taps / taps.sum()).expand(side, -1))


def _loss(module: FeatureNetwork | Judge, batch: Tensor, clean: Tensor, labels: Tensor, amounts: Tensor) -> Tensor:
    if isinstance(module, Judge):
        return F.cross_entropy(module(batch), labels)
    logits, thumbnail, degradation = module.heads(batch)
    return (
        # Smoothing bounds the logits; without it class would drown all else in the features, the longer the more.
        F.cross_entropy(logits, labels, label_smoothing=0.1)
        + 10 * F.mse_loss(thumbnail, F.adaptive_avg_pool2d(clean, THUMBNAIL))
        + 2 * F.mse_loss(degradation, amounts)
    )


def _rate(step: int, steps: int) -> float:
    """Warm-up over a twentieth of the steps, then half a cosine to zero."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _accuracy(module: FeatureNetwork | Judge, data: ImageSet, device: str) -> float:
    held_out = data.validation[:_HELD_OUT]
    right = 0
    for start in range(0, len(held_out), 500):
        part = held_out[start : start + 500]
        images = torch.from_numpy(data.images(part)).to(device).float() / 255
        right += int((module(images).argmax(1).cpu() == torch.from_numpy(data.labels(part))).sum())
    return right / len(held_out)
