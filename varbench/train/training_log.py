"""What a process that trains weights has seen, as it crosses the pipe, read off the file that it leaves beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def log_of(record: Mapping[str, Any], *, origin: str) -> TrainingLog:
    return TrainingLog(
        key=record["key"],
        origin=origin,
        data=record["data"],
        stages=tuple(
            TrainedStage(
                name=name,
                **{fact: stage[fact] for fact in ("steps", "seconds", "seed", "device")},
                losses={point: tuple(map(tuple, losses)) for point, losses in stage["losses"].items()},
                looks=tuple(HeldOutLoss(**look) for look in stage["evaluations"]),
            )
            for name, stage in record["stages"].items()
        ),
        making_examples=record.get("examples", {}).get("seconds", 0.0),
    )
