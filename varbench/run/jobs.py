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
from varbench.record.coding import decode
from varbench.record.options import Options
from varbench.spec import ModelSpec

Task = Literal["inputs", "train", "speed", "memory", "quality"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One child's work: one task, for rows that share their weights."""

    task: Task
    options: Options
    rows: tuple[str, ...]
    """In the order in which they run."""
    files: dict[str, str] | None
    """Weight files by part, `vae`, `main`, …; None draws random weights."""
    full: str
    """The full model's row, which others are held against."""
    round: int = 0
    anchor: bool = False
    """The full model's own plan is timed on these weights too, taking turns with the rows."""
    per_scale: bool = False
    energy: bool = False
    floors: bool = False
    full_images: str | None = None
    """File of the full model's first images: written by the full row, read by the others."""
    inputs: str = ""
    """Hash of code, plugins, weights and options of its rows, so that a finished job is never taken for one of other inputs."""

    @property
    def key(self) -> str:
        """Hash of all that decides what the job finds. Its options are in `inputs` as far as they do."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "options"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]

    def write(self, path: Path) -> None:
        """With the model's sizes, which may have been read off a file and are then no preset's."""
        sizes = presets.preset(self.options.model).spec.to_json()
        write_whole(path, json.dumps({**dataclasses.asdict(self), "sizes": sizes}, indent=1).encode())

    @staticmethod
    def read(path: Path, *, kind: type[Options] = Options) -> Job:
        data: dict[str, Any] = json.loads(path.read_bytes())
        presets.of_sizes(ModelSpec.from_json(data.pop("sizes")))
        options = decode(kind, data.pop("options"), "options")
        return Job(**{**data, "rows": tuple(data["rows"])}, options=options)
