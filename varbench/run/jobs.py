"""What a child is told to do: plain frozen data, written as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varbench.base.whole_files import write_whole
from varbench.plan import presets
from varbench.spec import ModelSpec

Task = Literal["inputs", "train", "speed", "memory", "quality"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One child's work: one task, for rows that share their weights."""

    task: Task
    model: str
    rows: tuple[str, ...]
    """In the order in which they run."""
    files: dict[str, str] | None
    """Weight files by part, `vae`, `main`, …; None draws random weights."""
    device: str
    dtype: str
    compile: str
    seed: int
    cfg: float
    top_k: int
    top_p: float
    batch: int
    full: str
    """The full model's row, which others are held against."""
    round: int = 0
    count: int = 3
    """Fewest calls that are timed."""
    seconds: float = 1.0
    """Shortest time that is spent on timing, a row and regime."""
    anchor: bool = False
    """The full model's own plan is timed on these weights too, taking turns with the rows."""
    per_scale: bool = False
    energy: bool = False
    images: int = 0
    reference: str | None = None
    inception: str | None = None
    second_opinion: bool = False
    floors: bool = False
    full_images: str | None = None
    """File of the full model's first images: written by the full row, read by the others."""
    data: str | None = None
    """Folder that a recipe is trained on; None is the preset's own data."""
    steps: int | None = None
    """Optimiser steps of a recipe; None is the preset's own budget."""
    quick: bool = False
    """A recipe is trained for a tenth of its steps or so."""
    memory_limit: int | None = None
    inputs: str = ""
    """Hash of code, plugins and weights of its rows, so that a finished job is never taken for one of other inputs."""

    @property
    def key(self) -> str:
        """Hash of all that the job says."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:24]

    def write(self, path: Path) -> None:
        """With the model's sizes, which may have been read off a file and are then no preset's."""
        sizes = presets.preset(self.model).spec.to_json()
        write_whole(path, json.dumps({**dataclasses.asdict(self), "sizes": sizes}, indent=1).encode())

    @staticmethod
    def read(path: Path) -> Job:
        data: dict[str, Any] = json.loads(path.read_bytes())
        presets.of_sizes(ModelSpec.from_json(data.pop("sizes")))
        return Job(**{**data, "rows": tuple(data["rows"])})
