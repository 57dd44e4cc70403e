"""The live display of a run or a training, on stderr: how far the whole is and how long it will take, and what it is at.

On a terminal that is a bar; elsewhere a line for each part, and one a minute within it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

_EVERY = 60.0
"""Seconds between lines within a part, where there is no terminal."""

_LONGEST = 100
"""Characters of a line on a terminal."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far the whole is."""

    done: int
    total: int
    """Parts."""
    elapsed: float
    left: float | None
    """Seconds; None while that is not known."""

    @property
    def share(self) -> float | None:
        """Of all its time."""
        return None if self.left is None else self.elapsed / (self.elapsed + self.left) if self.elapsed else 0.0

    @property
    def in_words(self) -> str:
        left = self.left
        return (
            "" if left is None else f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
        )


class Screen(Protocol):
    """Where it is shown."""

    def begins(self, title: str, standing: Standing) -> None:
        """A part does."""

    def shows(self, title: str, lines: Sequence[str], standing: Standing) -> None:
        """What the part of this title is at; a line each for what is done at the same time."""

    def prints(self, line: str) -> None:
        """A line that stays."""


@dataclass
class _Part:
    """The one at work."""

    kind: str
    size: float
    began: float
    first: tuple[float, float] | None = None
    """The share that was done, and when, as it was first told: how work begins says little of how it goes on."""
    latest: tuple[float, float] = (0.0, 0.0)

    def reached(self, share: float) -> None:
        self.latest = (share, time.monotonic())
        self.first = self.first or self.latest

    @property
    def seconds(self) -> float | None:
        """That all of it takes, by its own pace."""
        if self.first is None or self.latest[0] <= self.first[0]:
            return None
        return (self.latest[1] - self.first[1]) / (self.latest[0] - self.first[0])

    def left(self, usual: float) -> float:
        """Seconds, where parts of its kind and size take this long."""
        since, done = self.began, 0.0
        if self.seconds is not None:
            usual, (done, since) = self.seconds, self.latest
        return max(0.0, (1 - done) * usual - (time.monotonic() - since))


class Display:
    """`part` encloses the work of one process or one training, `reached` says how much of it is done, `detail` what it is at, and
    `note` prints a line that stays.

    `kinds` says what parts of each kind there will be: their number, or the size of each. `predicted` is how many seconds a part,
    or one of its size, takes, where that is known.
    """

    def __init__(
        self,
        kinds: Mapping[str, int | Sequence[float]],
        predicted: Mapping[str, float] | None = None,
        *,
        screen: Screen | None = None,
    ) -> None:
        sizes = {kind: (1.0,) * parts if isinstance(parts, int) else tuple(parts) for kind, parts in kinds.items()}
        self._left = {kind: sum(each) for kind, each in sizes.items()}
        self._done, self._total = 0, sum(map(len, sizes.values()))
        self._predicted = predicted or {}
        self._took: dict[str, list[tuple[float, float]]] = {}
        """Sizes and seconds of finished parts."""
        self._screen = screen or Lines()
        self._began = time.monotonic()
        self._at: _Part | None = None
        self._title = ""
        self._spread: float | None = None
        """Seconds that were left of work that is done in several places, when that was last reckoned."""

    @contextmanager
    def part(self, kind: str, title: str, *, size: float = 1.0) -> Iterator[None]:
        self._title = f"{kind}: {title}"
        self._at = part = _Part(kind, size, began=time.monotonic())
        self._screen.begins(self._title, self._standing)
        try:
            yield
        finally:
            self._took.setdefault(kind, []).append((size, time.monotonic() - part.began))
            self._finish(kind, size)
            self._at, self._title = None, ""

    def spare(self, kind: str, size: float = 1.0) -> None:
        """A part that was to come is there already."""
        if self._left.get(kind, 0.0) > 0:
            self._total -= 1
            self._left[kind] -= size

    def reached(self, share: float, *lines: str) -> None:
        """How much of the current part is done, and what it is at."""
        if self._at is not None:
            self._at.reached(share)
        self.detail(*lines)

    def part_of(self, done: int, total: int, title: str) -> None:
        """How far work is that is done in several places at once; the title says what begins."""
        self._title, self._done, self._total = "", done, total
        self._left.clear()  # whoever does the parts counts them
        elapsed = time.monotonic() - self._began
        self._spread = elapsed / done * (total - done) if done else None
        standing = self._standing
        if title:
            self.note(f"[{done}/{total}, {elapsed:.0f} s{standing.in_words}] {title}")
        self._screen.shows("", (), standing)

    def detail(self, *lines: str) -> None:
        """Shows what the current part is at; a line each for what is done at the same time."""
        self._screen.shows(self._title, lines, self._standing)

    def note(self, text: str) -> None:
        self._screen.prints(text)

    def waiting(self, text: str) -> Callable[[], None]:
        """To be called over and over while others are waited for: it is said at once, and stays to be seen."""
        first = iter([self.note])
        return lambda: next(first, self.detail)(text)

    def seconds_left(self) -> float | None:
        """By how long finished parts of each kind took, or by how far the current one is. Of a kind that has none, by what was
        predicted, which is the least that it can take, and by how much slower than that all were so far. None while a kind is
        left of which nothing is known."""
        done = {kind: took for kind, took in self._took.items() if kind in self._predicted}
        foreseen = sum(size * self._predicted[kind] for kind, took in done.items() for size, _ in took)
        slower = max(1.0, sum(seconds for took in done.values() for _, seconds in took) / foreseen) if foreseen else 1.0
        each = {kind: slower * seconds for kind, seconds in self._predicted.items()}
        at = self._at
        if at is not None and at.seconds is not None:
            each[at.kind] = at.seconds / at.size
        for kind, took in self._took.items():
            if size := sum(one for one, _ in took):
                each[kind] = sum(seconds for _, seconds in took) / size
        kinds = [kind for kind, left in self._left.items() if left > 0]
        if any(kind not in each for kind in kinds):
            return None
        if at is None or at.kind not in kinds:
            return sum(self._left[kind] * each[kind] for kind in kinds)
        begun = min(at.size, self._left[at.kind])
        later = sum((self._left[kind] - (begun if kind == at.kind else 0.0)) * each[kind] for kind in kinds)
        return later + at.left(begun * each[at.kind])

    def _finish(self, kind: str, size: float) -> None:
        self._done += 1
        self._left[kind] = max(0.0, self._left.get(kind, 0.0) - size)

    @property
    def _standing(self) -> Standing:
        return Standing(
            done=self._done,
            total=self._total,
            elapsed=time.monotonic() - self._began,
            left=self.seconds_left() if self._left else self._spread,
        )


def _told(title: str, lines: Sequence[str]) -> list[str]:
    return [": ".join(filter(None, (title, *lines)))] if len(lines) < 2 else [title, *lines]


class Lines:
    """Where there is no terminal."""

    def __init__(self) -> None:
        self._spoke = time.monotonic()

    def begins(self, title: str, standing: Standing) -> None:
        self.prints(f"[{standing.done + 1}/{standing.total}, {standing.elapsed:.0f} s{standing.in_words}] {title}")
        self._spoke = time.monotonic()

    def shows(self, title: str, lines: Sequence[str], standing: Standing) -> None:
        if lines and time.monotonic() - self._spoke > _EVERY:
            self._spoke = time.monotonic()
            first, *rest = _told(title, lines)
            self.prints("\n    ".join([f"  {first}{standing.in_words}", *rest]))

    def prints(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bar:
    """On a terminal; what draws is a `rich.progress.Progress`."""

    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("starting", total=None, parts="", left="")

    def begins(self, title: str, standing: Standing) -> None:
        self.shows(title, (), standing)

    def shows(self, title: str, lines: Sequence[str], standing: Standing) -> None:
        from rich.markup import escape

        self._drawn.update(
            self._task,
            description=escape("\n".join(line[:_LONGEST] for line in _told(title, lines))),
            total=None if standing.share is None else 1.0,  # without an end it only shows that something goes on
            completed=standing.share or 0.0,
            parts=f"{standing.done}/{standing.total}",
            left=standing.in_words.removeprefix(", "),
        )

    def prints(self, line: str) -> None:
        self._drawn.console.print(line, markup=False, highlight=False)


class Unseen:
    """Nowhere: all but one of several processes that train together."""

    def begins(self, title: str, standing: Standing) -> None: ...

    def shows(self, title: str, lines: Sequence[str], standing: Standing) -> None: ...

    def prints(self, line: str) -> None: ...


def unseen() -> Display:
    return Display({}, screen=Unseen())


@contextmanager
def shown(
    kinds: Mapping[str, int | Sequence[float]], predicted: Mapping[str, float] | None = None, *, quiet: bool = False
) -> Iterator[Display]:
    """On a terminal, where stderr is one. `quiet` shows nothing."""
    if quiet or not sys.stderr.isatty():
        yield unseen() if quiet else Display(kinds, predicted)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(bar_width=24), TextColumn("{task.fields[parts]}"), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False), TextColumn("{task.description}"),
    )  # fmt: skip
    # It draws beside what is timed, so twice a second; and what goes to stdout is a result, which may be read by a program.
    drawing = Progress(*columns, console=Console(stderr=True), refresh_per_second=2, redirect_stdout=False)
    with drawing as drawn:
        yield Display(kinds, predicted, screen=Bar(drawn))
