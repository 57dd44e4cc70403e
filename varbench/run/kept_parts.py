"""Parts of rows that are measured already, on disk: in the run's own folder, and for later runs on this machine."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from varbench.base.hashing import digest
from varbench.base.places import cache_folder
from varbench.measure.environment import environment
from varbench.measure.speed import SpeedRound
from varbench.run.findings import Seen, keep, kept
from varbench.run.messages import Trained
from varbench.run.prepare import Run
from varbench.run.verify import other_contents

Part = TypeVar("Part")


@dataclass(frozen=True)
class KeptParts:
    """Parts that are made from the same inputs and the same trained weights are the same parts."""

    run: Run
    folder: Path

    def path(self, kind: type, name: str, number: int = 0, *, trained: Trained | None) -> Path:
        weights = sorted(trained.hashes.items()) if trained else []
        key = digest([kind.__name__, self.run.rows[name].inputs, str(number), *map(" ".join, weights)])
        return self.folder / f"{self._begins(kind, name)}{key[:24]}.done.json"

    def _begins(self, kind: type, name: str) -> str:
        return f"{kind.__name__}-{self.run.rows[name].inputs[:16]}-"

    def groups_path(self, name: str, *, trained: Trained | None) -> Path:
        """Where a scorer keeps what it has seen of a row's images until all are there."""
        return self.path(Seen, name, trained=trained).with_suffix(".groups")

    def groups(self, name: str) -> list[Path]:
        """Such folders of the row that are there, whatever weights its images were made with."""
        return sorted(self.folder.glob(f"{self._begins(Seen, name)}*.groups"))

    def read(self, kind: type[Part], name: str, number: int = 0, *, trained: Trained | None) -> Part | None:
        """A part that this run had measured before it was interrupted."""
        return kept(kind, self.path(kind, name, number, trained=trained), before=self.run.began)

    def of_machine(self, kind: type[Part], name: str, *, trained: Trained | None) -> Part | None:
        """A part that another run on this machine had measured."""
        place = self._place(self.path(kind, name, trained=trained))
        return None if place is None else kept(kind, place, before=self.run.began)

    def write(self, part: object, name: str, number: int = 0, *, trained: Trained | None) -> None:
        if isinstance(part, Seen) and other_contents(self.run, part):
            return  # it would lie under the hash of what it was not made from
        path = self.path(type(part), name, number, trained=trained)
        keep(part, path)
        if not isinstance(part, SpeedRound) and (place := self._place(path)) is not None:  # times are of one run
            with contextlib.suppress(OSError):  # a full disk costs the cache, not the run
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)

    def _place(self, path: Path) -> Path | None:
        """Where a part is kept for later runs on this machine; None on a GPU, where it may come out differently, and with `--fresh`."""
        options = self.run.options
        return None if options.device != "cpu" or options.fresh else cache_folder("runs") / self._machine / path.name

    @cached_property
    def _machine(self) -> str:
        return environment("cpu").machine
