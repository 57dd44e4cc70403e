"""AdamW as the official code sets it up, the learning rate over a run, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_CLIP = 2.0


def adamw(module: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Betas 0.9 and 0.95; no weight decay on parameters that are vectors in all but shape (biases, scales, starts)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if sum(size > 1 for size in parameter.shape) > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    device = next(module.parameters()).device
    # On a GPU the rate lies where a step that is replayed finds it.
    rate = torch.zeros((), device=device) if device.type == "cuda" else 0.0
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True, capturable=device.type == "cuda")


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """What was saved, on this device, whatever device it was saved on."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group.update({name: optimizer.defaults[name] for name in ("lr", "capturable")})


def take_step(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], *, rate: float) -> float:
    """Clip, step, clear; the gradient's norm before clipping."""
    set_rate(optimizer, rate)
    return float(update(optimizer, parameters))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def update(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Tensor:
    """As `take_step`, at the rate that is set."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def divergence(step: int, *, steps: int, peak: float, **figures: float) -> str | None:
    """What to tell the user once a loss or a gradient is no number any more; None while all are."""
    for name, value in figures.items():
        if not math.isfinite(value):
            return (
                f"the {name} is {value} at step {step + 1} of {steps}, so the training has diverged and no weights are "
                f"written. Use a smaller learning rate, --rate (now {peak:g}), or --dtype float32."
            )
    return None


def rate_at(step: int, *, steps: int, peak: float, warm_up: int, floor: float = 0.0) -> float:
    """Linear warm-up, then half a cosine from `peak` down to `floor` times it."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    through = (step - warm_up) / max(1, steps - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * through)))


class RunningMean:
    """Exponential mean of a module's parameters; young means forget faster, so the first weights leave no trace."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._parameters: list[Tensor] = list(module.parameters())
        self._mean = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self._mean, self._parameters, 1 - decay)

    def mean_of(self, parameter: Tensor) -> Tensor:
        return self._mean[next(i for i, own in enumerate(self._parameters) if own is parameter)]

    def state(self) -> list[Tensor]:
        return self._mean

    def load(self, state: list[Tensor]) -> None:
        for mean, stored in zip(self._mean, state, strict=True):
            mean.copy_(stored)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights with the mean; a second call brings them back."""
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)
