"""Sends portions of a run to devices, one at a time each, and puts together what comes back.

A device that is lost in the middle costs its portion one more try, elsewhere; rows of one run are measured on one kind only.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from varbench.base.display import Display
from varbench.base.hashing import digest
from varbench.base.places import full_images
from varbench.base.whole_files import lay_there, write_whole
from varbench.errors import UserError
from varbench.record import Record, Status, write_record
from varbench.record.failure import Failure
from varbench.record.schema import Notice
from varbench.rows import FULL
from varbench.run.conduct import PARTS
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.fits import in_lines, misfits
from varbench.run.kept_parts import KeptParts
from varbench.run.prepare import Run
from varbench.run.scorers import numbered
from varbench.run.spread.kinds import kind_of
from varbench.run.spread.portion import FULL_IMAGES, Detail, Errand, Found, Full, Left, News, Note
from varbench.run.spread.portions import Portion, portions

TRIES = 2
"""How often a portion is begun before its rows fail."""
WAIT = 60.0
"""Seconds in which another device of the kind may turn up where none is left."""
LOOK = 1.0
"""Seconds between looks at what there is."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One device, which does one portion at a time."""

    name: str
    kind: str
    """What it is called by its maker: figures of two kinds are never put beside each other."""
    free: int | None = None
    """Bytes that rows can take there; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """It has done its portion."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """It is gone, or what ran there; somebody else may do better."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Broken:
    """What was asked cannot be done, here or elsewhere."""

    reason: str


class Cluster(Protocol):
    """Devices that can be sent errands."""

    def places(self) -> Sequence[Place]:
        """Those that are there now, at work or not."""

    def begin(self, place: Place, errand: Errand) -> None: ...

    def news(self, *, seconds: float) -> Iterable[tuple[Place, News | Ended | Lost | Broken]]:
        """What was heard since, waiting so long at most."""

    def close(self) -> None: ...


@dataclass
class Dispatch:
    run: Run
    out: Path
    display: Display
    cluster: Cluster
    done: dict[str, Record] = field(default_factory=dict)
    """Complete records of an earlier run with the same inputs, by row."""
    wait: float = WAIT
    _records: dict[str, Record] = field(default_factory=dict)
    _full: Findings | None = None
    _full_images: bytes | None = None
    _lost: dict[Portion, list[str]] = field(default_factory=dict)
    """Why a portion was begun again."""
    _handed: dict[Path, int] = field(default_factory=dict)
    """Files of groups that came back, and when they were written: what else lies there has to be older than the run."""

    def everything(self) -> None:
        """All rows that were not done before."""
        kind, places = self._kind()
        self.save_all()
        # Nor are images of one row made on two kinds.
        self._kept = KeptParts(self.run, self.out / PARTS / digest([kind])[:8])
        self._tidy(self.done)
        stored = full_images(self.run.rows[FULL].inputs)
        if stored.is_file() and lay_there(stored, before=self.run.began):
            self._full_images = stored.read_bytes()
        waiting = list(portions(self.run, places=max(1, places), done=self.done))
        total, finished = len(waiting), set[Portion]()
        at: dict[str, Portion] = {}
        alone = time.monotonic()
        while waiting or at:
            there = [place for place in self.cluster.places() if place.kind == kind]
            for place in (place for place in there if place.name not in at):
                ready = next((one for one in waiting if finished.issuperset(one.after)), None)
                if ready is not None:
                    waiting.remove(ready)
                    at[place.name] = ready
                    self.cluster.begin(place, self._errand(ready))
                    self.display.part_of(len(finished), total, f"{ready} on {place.name}")
            if there:
                alone = time.monotonic()
            elif not at and time.monotonic() - alone > self.wait:
                for portion in waiting:
                    self._fail(portion, f"no {kind} is left to run it on, and none came within {self.wait:.0f} s")
                break
            for place, news in self.cluster.news(seconds=LOOK):
                if not isinstance(news, Ended | Lost | Broken):
                    self._take(place, at[place.name], news)
                    continue
                portion = at.pop(place.name)
                if isinstance(news, Lost):
                    why = [*self._lost.get(portion, ()), f"{place.name} was lost ({news.reason})"]
                    if len(why) < TRIES:
                        again = self._again(portion, why)
                        total += len(again) - 1
                        waiting[:0] = again
                        self.display.note(f"  {portion}: {why[-1]}; it begins again elsewhere")
                        continue
                    self._fail(portion, "; then ".join(why))
                elif isinstance(news, Broken):
                    self._fail(portion, news.reason)
                finished.add(portion)
                self.display.part_of(len(finished), total, "")
                self._tidy(name for name in portion.rows if self._is_complete(name))

    def records(self) -> list[Record]:
        """Of all rows, as far as they have come."""
        return [
            self._records.get(name) or fill(self.run, row, Findings(failure=row.resolved.failure), floors={})
            for name, row in self.run.rows.items()
            if name not in self.done
        ]

    def save_all(self) -> list[Record]:
        """Writes the records of all rows but those that were complete before the run."""
        for record in (found := self.records()):
            write_record(record, self.out, replace=True)
        return found

    def _kind(self) -> tuple[str, int]:
        """That of the rows that are done, else the one of which there are most, of those that were asked for; and how many of it.
        What its memory does not hold is said."""
        places, asked = self.cluster.places(), self.run.options.kind
        counts = Counter(place.kind for place in places)
        kept = Counter(kind_of(record.environment) for record in self.done.values())
        wanted = _matching(asked, kept or counts)
        if not wanted:
            there = ", ".join(f"{count} of {name}" for name, count in counts.items())
            if kept:
                ran = ", ".join(kept)
                raise UserError(
                    f"--kind {asked}: the rows that are done ran on {ran}; leave it out, or choose another --out"
                )
            raise UserError(f"--kind {asked}: no such device is free in the cluster, which has {there}")
        ((kind, _),) = wanted.most_common(1)
        if others := ", ".join(f"{count} of {name}" for name, count in counts.items() if name != kind):
            why = "as those that are done did" if kept else "as was asked for" if asked else "which there are most of"
            self.display.note(f"all rows run on {kind}, {why}; left alone: {others}")
        free = min((place.free for place in places if place.kind == kind and place.free is not None), default=None)
        left = replace(self.run, rows={name: row for name, row in self.run.rows.items() if name not in self.done})
        for line in in_lines(left, misfits(left, free=free), free=free or 0):
            self.display.note(line)
        return kind, counts[kind]

    def _again(self, portion: Portion, why: list[str]) -> list[Portion]:
        """What is left of a portion, each row alone: the others shall not be lost with the one that it may be the fault of."""
        rows = [name for name in portion.rows if not self._is_complete(name)]
        left = [portion] if len(portion.rows) == 1 else [replace(portion, rows=(name,)) for name in rows]
        self._lost |= dict.fromkeys(left, why)
        return left

    def _is_complete(self, name: str) -> bool:
        return name in self._records and self._records[name].status is Status.COMPLETE

    def _errand(self, portion: Portion) -> Errand:
        files = {f"{PARTS}/{path.relative_to(self._kept.folder)}": path.read_bytes() for path in self._known(portion)}
        if FULL in portion.rows:
            return Errand(run=self.run, portion=portion, files=files)
        if self._full_images is not None:
            files[FULL_IMAGES] = self._full_images
        record = self._records.get(FULL) or self.done.get(FULL)
        return Errand(run=self.run, portion=portion, files=files, full=self._full, full_record=record)

    def _known(self, portion: Portion) -> list[Path]:
        """Groups of its images that were looked at before, here or elsewhere."""
        first, end = portion.images or (0, self.run.options.images)
        return [
            path
            for name in portion.rows
            for folder in self._kept.groups(name)
            for path in sorted(folder.glob("[!.]*"))
            if first <= numbered(path) < end and lay_there(path, before=self._handed.get(path, self.run.began))
        ]

    def _take(self, place: Place, portion: Portion, news: News) -> None:
        if isinstance(news, Detail):
            self.display.detail(f"{place.name}: {news.text}")
        elif isinstance(news, Note):
            self.display.note(news.text)
        elif isinstance(news, Full):
            self._full = news.findings
        elif isinstance(news, Found):
            self._keep(portion, news.record)
        elif news.place == FULL_IMAGES:
            self._full_images = news.content
            with contextlib.suppress(OSError):  # a full disk costs later runs the distance, and not this one
                write_whole(full_images(self.run.rows[FULL].inputs), news.content)
        else:
            self._put(place, portion, news)

    def _keep(self, portion: Portion, record: Record) -> None:
        name = record.row.row
        if name not in portion.rows:
            return
        images = (part for part in portion.after if part.images is not None)
        if again := [why for part in (*images, portion) for why in self._lost.get(part, ())]:
            record = replace(record, warnings=(*record.warnings, Notice(text=f"begun again: {'; then '.join(again)}")))
        self._records[name] = record
        write_record(record, self.out, replace=True)

    def _put(self, place: Place, portion: Portion, left: Left) -> None:
        where = Path(left.place)
        assert ".." not in where.parts and not where.is_absolute(), where
        path = self.out / where
        if where.parts[0] == "logs":
            path = self.out / "logs" / f"{place.name}-{where.name}"
        elif where.parts[0] == PARTS:
            path = self._kept.folder / where.relative_to(PARTS)
        write_whole(path, left.content)
        if where.parts[0] == PARTS:
            self._handed[path] = path.stat().st_ctime_ns + 1

    def _tidy(self, complete: Iterable[str]) -> None:
        """Groups of rows that are complete are not needed any more."""
        for folder in chain.from_iterable(map(self._kept.groups, complete)):
            shutil.rmtree(folder)

    def _fail(self, portion: Portion, reason: str) -> None:
        """Images of a row that were not made are made with the row."""
        self.display.note(f"  {portion}: {reason}")
        for name in portion.rows if portion.images is None else ():
            failed = Findings(failure=Failure(status=Status.FAILED, reason=reason))
            self._keep(portion, fill(self.run, self.run.rows[name], failed, floors={}))


def _matching(asked: str | None, kinds: Counter[str]) -> Counter[str]:
    """Those of the kinds that are called so, or have it in their names; all where nothing was asked for."""
    wanted = (asked or "").lower()
    exact = {kind for kind in kinds if kind.lower() == wanted}
    return Counter(
        {kind: count for kind, count in kinds.items() if kind in exact or (not exact and wanted in kind.lower())}
    )
