"""Shows on stderr how far a run is: on a terminal a bar with the time left, elsewhere a line for each part and each minute."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_EVERY = 60.0
"""Seconds between lines within a part, where there is no terminal."""


class Display:
    """`part` encloses the work of one process, `detail` says what it is at, `note` prints a line that stays. `kinds` says how
    many parts of each kind there will be, `predicted` how many seconds one takes, where that is known."""

    def __init__(self, kinds: dict[str, int], predicted: Mapping[str, float] | None = None, *, bar: Any = None) -> None:
        self._left = Counter(kinds)
        self._predicted = predicted or {}
        self._total = sum(kinds.values())
        self._took: dict[str, list[float]] = {}
        self._bar = bar
        self._began = self._spoke = time.monotonic()
        self._at: tuple[str, float] | None = None
        """The kind of the part that is at work, and when it began."""
        self._title = ""
        if bar is not None:
            self._task = bar.add_task("starting", total=self._total, left="")

    @contextmanager
    def part(self, kind: str, title: str) -> Iterator[None]:
        done = self._total - sum(self._left.values())
        self._title = f"{kind}: {title}"
        self._at = (kind, time.monotonic())
        if self._bar is None:
            print(
                f"[{done + 1}/{self._total}, {time.monotonic() - self._began:.0f} s{self._in_words()}] {self._title}",
                file=sys.stderr,
                flush=True,
            )
        else:
            self._show(self._title)
        self._spoke = began = time.monotonic()
        try:
            yield
        finally:
            self._took.setdefault(kind, []).append(time.monotonic() - began)
            self._left[kind] -= 1
            self._at = None
            if self._bar is not None:
                self._bar.advance(self._task)

    def part_of(self, done: int, total: int, title: str) -> None:
        """How far work is that is done in several places at once; the title says what begins."""
        self._title = ""
        elapsed = time.monotonic() - self._began
        left = f", about {elapsed / done * (total - done) / 60:.0f} min left" if done else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, left=left)
        if title:
            self.note(f"[{done}/{total}, {elapsed:.0f} s{left}] {title}")

    def detail(self, text: str) -> None:
        """Shows what the current part is at."""
        if self._bar is not None:
            self._show(": ".join(filter(None, (self._title, text))))
        elif time.monotonic() - self._spoke > _EVERY:
            self._spoke = time.monotonic()
            told = ": ".join(filter(None, (self._title, text)))
            print(f"  {told}{self._in_words()}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _show(self, text: str) -> None:
        from rich.markup import escape

        self._bar.update(self._task, description=escape(text[:100]), left=self._in_words())

    def _in_words(self) -> str:
        left = self.seconds_left()
        return (
            "" if left is None else f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
        )

    def seconds_left(self) -> float | None:
        """By how long finished parts of each kind took. Of a kind that has none, by what was predicted, which is the least that
        it can take, and by how much slower than that all were so far. None while a kind is left of which neither is known."""
        done = {kind: sum(took) for kind, took in self._took.items() if kind in self._predicted}
        foreseen = sum(len(self._took[kind]) * self._predicted[kind] for kind in done)
        slower = max(1.0, sum(done.values()) / foreseen) if foreseen else 1.0
        each = {kind: slower * seconds for kind, seconds in self._predicted.items()}
        each |= {kind: sum(took) / len(took) for kind, took in self._took.items()}
        kinds = [kind for kind, left in self._left.items() if left > 0]
        if any(kind not in each for kind in kinds):
            return None
        kind, began = self._at or ("", 0.0)
        spent = min(time.monotonic() - began, each[kind]) if kind in kinds else 0.0
        return sum(self._left[kind] * each[kind] for kind in kinds) - spent


@contextlib.contextmanager
def shown(kinds: dict[str, int], predicted: Mapping[str, float] | None = None) -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield Display(kinds, predicted)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Display(kinds, predicted, bar=bar)
