"""Where a run is, on stderr: one live line on a terminal, a plain line a step elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any


class Display:
    """`step` begins a child, `detail` says where it is within, `note` stays on the screen."""

    def __init__(self, total: int, *, status: Any = None) -> None:
        self._total, self._done, self._status = total, 0, status
        self._began = time.monotonic()
        self._title = ""

    def step(self, title: str) -> None:
        self._done += 1
        self._title = f"[{self._done}/{self._total}, {time.monotonic() - self._began:.0f} s] {title}"
        if self._status is None:
            print(self._title, file=sys.stderr, flush=True)
        else:
            self._status.update(self._title)

    def detail(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"{self._title}: {text}")

    def note(self, text: str) -> None:
        if self._status is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._status.console.print(text, markup=False, highlight=False)


@contextlib.contextmanager
def shown(total: int) -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield Display(total)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield Display(total, status=status)
