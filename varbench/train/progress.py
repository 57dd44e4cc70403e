"""Live progress on stderr: a bar on a terminal, a plain line now and then elsewhere. Event files for TensorBoard beside."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

_PLAIN_EVERY_S = 15.0
_EVENTS_EVERY = 10
_TRACE = 0.9


class Progress(Protocol):
    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """The number of steps done, and the latest figures by name."""


Outlet = Callable[[int, dict[str, float], float | None], None]
"""Is told the steps that are done, smoothed figures, and seconds a step, None while that is not known."""


@contextlib.contextmanager
def shown(
    title: str, *, steps: int, batch: int | None = None, events: Path | None = None, quiet: bool = False
) -> Iterator[Progress]:
    """Show a training of `steps` steps while the block runs; write scalars to the folder `events` if given.

    Of steps of a `batch`, how many images a second they take is shown too.

    `quiet` shows and writes nothing: all but one of several processes that train together.
    """
    if quiet:
        yield lambda step, figures: None
        return
    with contextlib.ExitStack() as stack:
        outlets = [_bar(stack, title, steps) if sys.stderr.isatty() else _lines(title, steps)]
        if events is not None:
            outlets.append(_events(stack, events))
        smooth: dict[str, float] = {}
        first: tuple[int, float] | None = None

        def progress(step: int, figures: dict[str, float]) -> None:
            nonlocal first
            now = time.monotonic()
            # The first step is slow and, after a crash, not step one, so time is reckoned from the second call on.
            first = first or (step, now)
            each = (now - first[1]) / (step - first[0]) if step > first[0] else None
            for name, value in figures.items():
                smooth[name] = _TRACE * smooth[name] + (1 - _TRACE) * value if name in smooth else value
            if batch is not None and each:
                smooth["images/s"] = batch / each
            for outlet in outlets:
                outlet(step, smooth, each)

        yield progress


def said_now_and_then(text: str) -> Callable[[], None]:
    """Says it on stderr when first called, and again when called after a while: who is silent for long is taken for dead."""
    last = float("-inf")

    def say() -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_EVERY_S:
            last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return say


def _words(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _bar(stack: contextlib.ExitStack, title: str, steps: int) -> Outlet:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = stack.enter_context(
        Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
    )
    task = bars.add_task(title, total=steps, figures="")

    def show(step: int, figures: dict[str, float], each: float | None) -> None:
        bars.update(task, completed=step, figures=_words(figures))

    return show


def _lines(title: str, steps: int) -> Outlet:
    last = float("-inf")

    def show(step: int, figures: dict[str, float], each: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PLAIN_EVERY_S and step != steps:
            return
        last = now
        left = "time left unknown" if each is None else f"{each * (steps - step):.0f} s left"
        print(f"{title}: step {step} of {steps}, {left}  {_words(figures)}", file=sys.stderr, flush=True)

    return show


def _events(stack: contextlib.ExitStack, folder: Path) -> Outlet:
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

    def write(step: int, figures: dict[str, float], each: float | None) -> None:
        if step % _EVENTS_EVERY == 0:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

    return write
