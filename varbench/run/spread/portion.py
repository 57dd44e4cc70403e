"""One portion, done on the machine that it was sent to. What is found is told as it comes: with the machine nothing more is
lost than the group of images that it was making."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from varbench.base.display import Display, Standing
from varbench.base.places import full_images
from varbench.base.whole_files import write_whole
from varbench.measure.environment import available_memory
from varbench.record import Record
from varbench.rows import FULL
from varbench.run.children import Child
from varbench.run.conduct import Conduct
from varbench.run.findings import Findings
from varbench.run.prepare import Run
from varbench.run.scorers import Scorers
from varbench.run.spread.portions import Portion
from varbench.run.task import Task

FULL_IMAGES = "full-images"
"""Among what is sent: the file that other rows' images are held against, which lies in the cache and not in the run's folder."""

_conducting = ThreadPoolExecutor(1)
"""One thread for all: processes that it starts end with it."""


@dataclass(frozen=True, kw_only=True)
class Errand:
    """All that a device is told."""

    run: Run
    portion: Portion
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What was found elsewhere, by its place in the run's folder."""
    full: Findings | None = None
    """What is known of the full model, where it is not this portion's row."""
    full_record: Record | None = None


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What it is at."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line that stays."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """A row's record, each time that more is known."""

    record: Record


@dataclass(frozen=True, kw_only=True)
class Left:
    """A file that whoever goes on needs, or that shall be kept, by its place in the run's folder."""

    place: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Full:
    """What became known of the full model."""

    findings: Findings


News = Detail | Note | Found | Left | Full


def carry_out(errand: Errand) -> Iterator[News]:
    """Does a portion in processes of this machine. A whole row ends with the files that it leaves."""
    news: SimpleQueue[News | BaseException | None] = SimpleQueue()

    def work(out: Path) -> None:
        try:
            _work(errand, out, news.put)
        except BaseException as error:
            news.put(error)
        else:
            news.put(None)

    with tempfile.TemporaryDirectory(prefix="varbench-") as folder:
        _conducting.submit(work, Path(folder))
        while (one := news.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
        if errand.portion.images is None:
            yield from _left_in(Path(folder), errand)


def _work(errand: Errand, out: Path, tell: Callable[[News], None]) -> None:
    for place, content in errand.files.items():
        path = _full_images(errand.run) if place == FULL_IMAGES else out / place
        write_whole(path, content)
    # No plugin has run here yet: what was sent lay here before.
    run = replace(errand.run, began=time.time_ns(), available_memory=available_memory())
    wanted = {FULL, *errand.portion.rows}
    conduct = _Telling(
        run=replace(run, rows={name: row for name, row in run.rows.items() if name in wanted}),
        out=out,
        display=Display({}, screen=_AtHome(tell)),
        done={} if errand.full_record is None or FULL in errand.portion.rows else {FULL: errand.full_record},
        found={} if errand.full is None else {FULL: errand.full},
    )
    conduct.tell = tell
    if errand.portion.images is not None:
        _collect(conduct, errand.portion.rows[0], errand.portion.images)
        return
    conduct.everything()
    if FULL in errand.portion.rows:
        tell(Full(findings=conduct.found[FULL]))


def _collect(conduct: Conduct, name: str, images: tuple[int, int]) -> None:
    """Some images of a row are made and looked at, and nothing else."""
    weights = next(one for one in conduct.run.weight_sets if name in one.rows)
    left = [name]

    def work(subjects: tuple[Child, ...], names: tuple[str, ...]) -> None:
        left.clear()
        with conduct.scorers() as scorers:
            scorers.collect(name, subjects, conduct.display.detail, groups=conduct.groups_path(name), images=images)

    conduct.train()
    conduct.in_children(weights, Task(title="images", lacking=lambda row: row in left, work=work, full_beside=False))


def _left_in(out: Path, errand: Errand) -> Iterator[Left]:
    for path in sorted(path for kept in ("images/**/*", "logs/*") for path in out.glob(kept) if path.is_file()):
        yield _left(path, out)
    if FULL in errand.portion.rows and (path := _full_images(errand.run)).is_file():
        yield Left(place=FULL_IMAGES, content=path.read_bytes())


def _left(path: Path, out: Path) -> Left:
    return Left(place=str(path.relative_to(out)), content=path.read_bytes())


def _full_images(run: Run) -> Path:
    return full_images(run.rows[FULL].inputs)


class _Telling(Conduct):
    """Tells of each record that it writes, and hands over what was seen of each group of images."""

    tell: Callable[[News], None]

    def _save(self, names: tuple[str, ...]) -> list[Record]:
        records = super()._save(names)
        for record in records:
            self.tell(Found(record=record))
        return records

    def scorers(self) -> Scorers:
        scorers = super().scorers()
        scorers.on_kept = lambda file: self.tell(_left(file, self.out))
        return scorers


class _AtHome:
    """Shown where the run was started."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        self._tell = tell

    def begins(self, title: str, standing: Standing) -> None:
        self._tell(Detail(text=title))

    def shows(self, title: str, lines: Sequence[str], standing: Standing) -> None:
        self._tell(Detail(text="  ".join(lines) or title))

    def prints(self, line: str) -> None:
        self._tell(Note(text=line))
