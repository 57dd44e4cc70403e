"""How far a training is: its figures, smoothed, for the live display, and event files for TensorBoard beside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from varbench.base.display import Display

TOKENS, EXAMPLES, TRAINING = "tokens", "examples", "training"
"""Kinds of parts that the display counts, in images and in steps."""

Sizes = dict[str, list[float]]
"""Of the parts, by kind."""

_EVENTS_EVERY = 10
_TRACE = 0.9


class Progress(Protocol):
    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """The number of steps done, and the latest figures by name."""


@contextlib.contextmanager
def followed(
    display: Display, kind: str, title: str, *, steps: int, batch: int | None = None, events: Path | None = None
) -> Iterator[Progress]:
    """Shows a part of `steps` steps while the block runs; writes scalars to the folder `events` if given.

    Of steps of a `batch`, how many images a second they take is shown too.
    """
    smooth: dict[str, float] = {}
    rate: dict[str, float] = {}
    first: tuple[int, float] | None = None
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        write = None if events is None else _events(stack, events)
        stack.enter_context(display.part(kind, title, size=steps))

        def progress(step: int, figures: dict[str, float]) -> None:
            nonlocal first
            now = time.monotonic()
            # The first step is slow and, after a crash, not step one, so time is reckoned from the second call on.
            first = first or (step, now)
            for name, value in figures.items():
                smooth[name] = _TRACE * smooth[name] + (1 - _TRACE) * value if name in smooth else value
            if batch is not None and step > first[0] and now > first[1]:
                rate["images/s"] = batch * (step - first[0]) / (now - first[1])
            display.reached(step / steps, "  ".join([f"step {step} of {steps}", *_words(smooth | rate)]))
            if write is not None:
                write(step, smooth | rate)

        yield progress
    if smooth:
        display.note(
            "  ".join([f"  {title}: {steps} steps in {time.monotonic() - began:.0f} s", *_words(smooth | rate)])
        )


def _words(figures: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in figures.items()]


def _events(stack: contextlib.ExitStack, folder: Path) -> Callable[[int, dict[str, float]], None]:
    from varbench.errors import UserError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"TensorBoard event files were asked for ({folder}), and the package tensorboard is not installed. "
            "Install it (pip install tensorboard), or leave the option out."
        ) from error
    writer: Any = SummaryWriter(str(folder))
    stack.callback(writer.close)

    def write(step: int, figures: dict[str, float]) -> None:
        if step % _EVENTS_EVERY == 0:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

    return write
