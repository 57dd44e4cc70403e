"""Weights of recipes that come with the package: found by what they were trained from, not by their name, and looked at again
before they are used.

A method under another name so gets the same ones, unless its name is part of the training: a generator's, and that of a method
with numbers or a loss of its own (`train/own_numbers.py`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varbench.base.hashing import file_hash
from varbench.base.whole_files import whole_file
from varbench.errors import CheckpointError, UserError
from varbench.model.state_files import write_what_differs
from varbench.plan import presets
from varbench.policies import MAIN
from varbench.train.budgets import recipe_budget
from varbench.train.trainer import Budget


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The folder of a preset in which trained weights lie ready, and the budget that they had."""

    assets: Path
    budget: Budget

    def of_key(self, key: str) -> tuple[dict[str, Path], dict[str, Any]] | None:
        """The weights whose training has this key, by backbone, and what is told of them; whatever method trained them."""
        for folder, told in presets.recipe_records(self.assets):
            if told["key"] == key:
                return {backbone: folder / f"{backbone}.safetensors" for backbone in told["files"]}, told
        return None

    def of_another_training(self, recipe: str) -> str | None:
        """Why weights that ship under the recipe's name, none of its key, are not used; None where nothing has its name."""
        if not (presets.recipe_folder(self.assets, recipe) / presets.RECORD).is_file():
            return None
        return f"the shipped weights of {recipe} are of another schedule, start, data or budget, and are not used"


def not_what_shipped(files: Mapping[str, Path], told: Mapping[str, Any]) -> str | None:
    """Which of the weights that ship is not the file it was; None where all are."""
    for backbone, path in files.items():
        if not path.is_file() or file_hash(path) != told["files"][backbone]:
            return f"{path} is not the file that was shipped, and is not used"
    return None


def shipped_with(preset: str, *, seed: int, steps: int | None) -> Shipped | None:
    """What ships for a preset, if it had this seed and so many steps; None is whatever number of them."""
    if (had := presets.steps_that_ship(preset, seed=seed, steps=steps)) is None:
        return None
    return Shipped(assets=presets.asset_folder(preset), budget=recipe_budget(had, seed=seed))


def put(assets: Path, recipe: str, *, files: Mapping[str, Path], record: Mapping[str, Any]) -> Path:
    """Copies trained weights, with their record and hashes, as they ship in this folder; where they lie then. Those of another
    training that lie there are replaced, which is said: in the cache both stay."""
    folder, base = presets.recipe_folder(assets, recipe), assets / presets.SHIPPED[MAIN]
    if (earlier := _another(folder, record)) is not None:
        what = f"{_how(earlier)} are replaced by those of {_how(record)}"
        print(f"{folder}: weights of another training of {recipe}, {what}", file=sys.stderr)
    for backbone, path in files.items():
        with whole_file(folder / f"{backbone}.safetensors") as file:
            # Of a model in which only some parts were trained, the others ship once.
            if not (base.is_file() and write_what_differs(path, base, into=file, lies_in=folder)):
                file.write(path.read_bytes())
    own = {backbone: folder / f"{backbone}.safetensors" for backbone in files}
    told = {**record, "files": {backbone: file_hash(path) for backbone, path in own.items()}}
    with whole_file(folder / presets.RECORD) as file:
        file.write((json.dumps(told) + "\n").encode())
    return folder


def _another(folder: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is told of the weights that lie in a folder, where they are not of the training that this record tells of."""
    try:
        told: dict[str, Any] = json.loads((folder / presets.RECORD).read_text())
    except (OSError, ValueError):
        return None
    return None if told.get("key") == record.get("key") else told


def _how(record: Mapping[str, Any]) -> str:
    """How weights were trained, in the words of the options that most often differ."""
    stages = record.get("stages", {}).values()
    batches, seeds = (" and ".join(dict.fromkeys(str(one[name]) for one in stages)) for name in ("batch", "seed"))
    return f"{sum(one['steps'] for one in stages):,} steps (batch {batches}, seed {seeds}, key {record['key'][:8]})"


def taken(folder: Path, recipe: str) -> tuple[dict[str, Path], dict[str, Any]]:
    """A recipe's weights by backbone, and their record, out of what `put` wrote here or what a training left in the cache."""
    places = (presets.recipe_folder(folder, recipe), folder)
    place = next((place for place in places if (place / presets.RECORD).is_file()), None)
    told: dict[str, Any] = {} if place is None else json.loads((place / presets.RECORD).read_text())
    if place is None or told["row"] != recipe:
        held = "nothing that was trained to its end" if place is None else told["row"]
        raise UserError(f"{folder} holds {held}; give the folder that `varbench train {recipe} --out DIR` wrote")
    files = {path.stem: path for path in sorted(place.glob("*.safetensors"))}
    for backbone, sha256 in told.get("files", {}).items():
        if backbone not in files or file_hash(files[backbone]) != sha256:
            raise CheckpointError(
                f"{place}: its {backbone} is not the file that was written there; train or copy it again"
            )
    return files, told
