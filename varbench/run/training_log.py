"""What a process that trains weights has seen, as it crosses the pipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Loss on images that were not trained on, after so many steps of a stage."""

    step: int
    point: str
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class TrainedStage:
    """What a process saw while it trained a stage of a recipe."""

    name: str
    steps: int
    seconds: float
    seed: int
    device: str
    losses: dict[str, tuple[tuple[int, float], ...]]
    """By what was trained: steps with their loss."""
    looks: tuple[HeldOutLoss, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    key: str
    origin: str
    data: str
    """Fingerprint of the images."""
    stages: tuple[TrainedStage, ...]
    making_examples: float = 0.0
    """Seconds in which a model made what is learnt."""
