"""Notes when things happen in one call of a subject, in the subject's own process."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
from torch import Tensor

from varbench.engine.loop import Observer
from varbench.engine.pixels import to_uint8
from varbench.engine.subjects import Answer, Ask
from varbench.errors import WrongOutputError
from varbench.measure.calls import Marks
from varbench.measure.clock import clock_for
from varbench.quality.images import Images
from varbench.spec import ModelSpec


class Timeable(Protocol):
    """The part of a subject that timing needs."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    def prepare(self, ask: Ask) -> None:
        """Set up what is set up once for such calls."""

    def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer: ...


def timed(subject: Timeable, ask: Ask) -> tuple[Answer, Images, Marks]:
    """The answer, its images as bytes on the host, and when each part had ended: one call gives every column."""
    asked = time.monotonic()
    subject.prepare(ask)
    clock = clock_for(subject.device)
    moments: dict[str, list[Any]] = {"start": [], "logits": [], "end": []}
    first: tuple[str, int] | None = None
    clock.settle()
    began, start = time.monotonic(), clock.mark()

    def look(moment: str, step: int) -> None:
        nonlocal began, start, first
        if (moment, step) == first:  # memory was short, and the call began anew; what came before was to set it up
            for found in moments.values():
                found.clear()
            began, start = time.monotonic(), clock.mark()
        first = first or (moment, step)
        moments[moment].append(clock.mark())

    answer = subject.make(ask, observer=look)
    decoded = clock.mark()
    try:
        images = to_uint8(answer.images)
    except Exception:
        check_images(answer.images, batch=len(ask.labels), side=subject.model.image_side)  # says it better
        raise
    ended = time.monotonic()
    clock.settle()
    check_images(answer.images, batch=len(ask.labels), side=subject.model.image_side)
    starts, logits, ends = (tuple(clock.between(start, mark) for mark in found) for found in moments.values())
    marks = Marks(
        clock=clock.name,
        starts=starts,
        logits=logits,
        ends=ends,
        decoded=clock.between(start, decoded),
        asked=asked,
        began=began,
        ended=ended,
    )
    return answer, images, marks


def check_images(images: Tensor, *, batch: int, side: int) -> None:
    """`WrongOutputError` for too few images, another size, or NaN, with both numbers."""
    if type(images) is not Tensor:  # which could put work off until nobody looks at a clock
        raise WrongOutputError(f"images are a {type(images).__name__}, and a plain torch.Tensor was asked for")
    shape, wanted = tuple(images.shape), (batch, 3, side, side)
    if shape[:1] != wanted[:1]:
        raise WrongOutputError(f"{batch} images were asked for, and {shape[0] if shape else 0} came")
    if shape != wanted:
        raise WrongOutputError(f"images have shape {shape}, and {wanted} was asked for")
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise WrongOutputError(f"{broken} of {batch} images hold NaN or infinite pixels")
