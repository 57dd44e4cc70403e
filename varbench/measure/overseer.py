"""Oversees timed calls from outside the process that makes them: draws what is asked, and keeps its own clock. No torch.

Which images are timed is drawn from a secret of the run once the process is there, so nothing can have been prepared. Among
them are images that were scored, under the scored seed: they must come out as they did then, and images that are timed must
look like them. So what is timed is what is scored.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

from varbench.base.hashing import digest
from varbench.measure.calls import Reply, Request, balanced_labels

WARM = 2
"""Calls of a row's batch before the timed ones, where the first may leave something to be compiled or captured."""


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One call, timed or made again, and what came of it."""

    batch: int
    seed: int
    answer: str
    """Hash of its tokens; of its images where there are none."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Images that were timed, beside images that were scored, of the same labels."""

    batch: int
    """Which batch of the scored images."""
    images_sha256: str
    """Of the scored ones, as they were made among the timed calls."""
    chance: float | None = None
    """How likely a difference as large as theirs is by chance; None where nobody looks at images."""


@dataclass(frozen=True, kw_only=True)
class Oversight:
    """What was seen of a row's timed calls in one process."""

    secret: str
    """What the calls were drawn from: told when nothing is asked any more."""
    first: int
    """Number of the first image of its calls in the noise stream."""
    laps: tuple[Lap, ...]
    busy_between: float | None
    """Processor seconds of the process between calls, when it has nothing to do; None where the system does not tell."""
    busy_within: float | None
    likeness: Likeness | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """How many were scored, and under which seed."""

    count: int
    seed: int


@dataclass
class _Row:
    """What is known of one row so far."""

    first: int
    scored_call: int
    """Which of its calls asks for images that were scored; -1 for none."""
    calls: int = 0
    laps: list[Lap] = field(default_factory=list)


@dataclass(kw_only=True)
class Overseer:
    secret: str
    batch: int
    classes: int
    calls: int
    """Calls of a row that are timed at least."""
    keep: Path
    """Where every call leaves its images, timed or not."""
    warm: int = WARM
    """Calls of a row's batch before those."""
    scored: dict[str, ScoredImages] = field(default_factory=dict)
    """By row; rows that are not there are not scored."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.secret)
        self._rows: dict[str, _Row] = {}
        self._last: float | None = None
        self._between = self._within = 0.0
        self._told = False

    def order(self, rows: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._random.sample(rows, len(rows)))

    def draw(self, row: str, batch: int) -> Request:
        """What to ask next of a row. Nothing in it tells whether its time counts, or its images are held against scored ones, or
        both. That it is none of the calls that scores come from may be told by its threads, of which it has all."""
        known = self._known(row)
        seed = self._seed()
        if batch == self.batch:
            if known.calls == known.scored_call:
                seed = self.scored[row].seed
            known.calls += 1
        labels = balanced_labels(batch, self.classes, first=known.first)
        return Request(row=row, labels=labels, seed=seed, first=known.first, keep=str(self.keep.resolve()))

    def _known(self, row: str) -> _Row:
        if row not in self._rows:
            whole = self.scored[row].count // self.batch if row in self.scored else 0
            self._rows[row] = _Row(
                first=self.batch * self._random.randrange(max(1, whole)),
                scored_call=self.warm + self._random.randrange(self.calls) if whole else -1,
            )
        return self._rows[row]

    def _seed(self) -> int:
        """Independent of all earlier ones for whoever does not know the secret."""
        drawn = hashlib.sha256(f"{self.secret} {self._random.random()}".encode()).digest()
        return int.from_bytes(drawn[:4]) % 2**31

    def note(self, request: Request, reply: Reply, *, before: float | None, after: float | None) -> None:
        self._count(before, after)
        batch = len(request.labels)
        known = self._known(request.row)
        if known.calls <= self.warm:
            return
        answer = reply.tokens_sha256 or reply.images_sha256
        known.laps.append(Lap(batch=batch, seed=request.seed, answer=answer))
        if batch == self.batch:
            self._set_aside(request, known)

    def is_repeated(self) -> bool:
        """Whether the full model's latest call is one of those that are held against the same call elsewhere."""
        return self._random.random() < 0.9

    def _count(self, before: float | None, after: float | None) -> None:
        last, self._last = self._last, after
        if before is not None and last is not None:
            self._between += max(0.0, before - last)
        if before is not None and after is not None:
            self._told = True
            self._within += max(0.0, after - before)

    def _set_aside(self, request: Request, known: _Row) -> None:
        """Of every row that is scored, the images of one call under the scored seed, and of one that was only timed."""
        if known.scored_call < 0:
            return
        scored, timed = self.set_aside(request.row)
        place = scored if request.seed == self.scored[request.row].seed else timed
        if not place.exists():
            self.keep.replace(place)

    def set_aside(self, row: str) -> tuple[Path, Path]:
        """Files of images: scored ones, and timed ones of the same labels."""
        name = digest([f"{self.secret} {row}"])[:16]
        return self.keep.with_name(f"{name}-1.npz"), self.keep.with_name(f"{name}-2.npz")

    def oversight(self, row: str, *, sha256: str | None = None, chance: float | None = None) -> Oversight:
        """What was seen of a row; with the hash of its scored images as they were made here, where they were."""
        known = self._known(row)
        likeness = None
        if sha256 is not None:
            likeness = Likeness(batch=known.first // self.batch, images_sha256=sha256, chance=chance)
        return Oversight(
            secret=self.secret,
            first=known.first,
            laps=tuple(known.laps),
            busy_between=self._between if self._told else None,
            busy_within=self._within if self._told else None,
            likeness=likeness,
        )
