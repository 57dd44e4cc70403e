"""Models by name: their geometry, and which weights are shipped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from varbench.errors import UserError, did_you_mean
from varbench.policies import MAIN
from varbench.spec import SIDES_256, SIDES_512, ModelSpec, TokenizerSpec

DEFAULT = "tiny"
SHIPPED = {"vae": "tokenizer.safetensors", MAIN: "base.safetensors"}
"""Files under `assets/<preset>/`, by the part of a pipeline that they fill."""
SHIPPED_SEED = 0
"""Of the trainings whose weights ship."""
RECORD = "record.json"
"""What is told of a recipe's trained weights, beside them."""
SHORT_STEPS = 60
"""Optimiser steps of a recipe, unless its trained weights ship or more are asked for."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    spec: ModelSpec
    assets: bool = False
    """Whether the package ships its weights; those of other presets are given by path, or drawn at random."""
    companions: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Further models whose weights are shipped, by file name: a method that runs two finds the one of its sizes."""
    summary: str = ""
    data: str = ""
    """What of the user's its weights were trained on, to be given by --data; empty where the package draws such images, or where
    nothing ships."""
    shipped_steps: int | None = None
    """Optimiser steps of the recipes whose trained weights ship; None where none do."""

    @property
    def draws_images(self) -> bool:
        """Whether the package has as many images as anyone asks for, of the kind that the model makes."""
        return self.assets and not self.data


def _official(depth: int) -> Preset:
    spec = ModelSpec(name=f"var-d{depth}", sides=SIDES_256, depth=depth, width=64 * depth, heads=depth)
    return Preset(spec=spec, summary="ImageNet 256 px; official checkpoint by --weights and --vae")


_TINY = ModelSpec(
    name="tiny",
    sides=(1, 2, 3, 4, 6, 8),
    depth=16,
    width=128,
    heads=4,
    classes=10,
    tokenizer=TokenizerSpec(channels=32, multipliers=(1, 2, 2), blocks=1, code_dim=16, vocabulary=512, phis=4),
)
_FASHION = replace(_TINY, name="fashion")
_D36 = ModelSpec(name="var-d36", sides=SIDES_512, depth=36, width=64 * 36, heads=36, shared_adaln=True)

_PRESETS = {
    preset.spec.name: preset
    for preset in (
        Preset(
            spec=_TINY,
            assets=True,
            companions={"narrow.safetensors": _TINY.narrower()},
            shipped_steps=2_000,
            summary="procedural shapes 32 px; ships with the package, runs on a CPU",
        ),
        Preset(
            spec=_FASHION,
            assets=True,
            companions={"narrow.safetensors": _FASHION.narrower()},
            summary="Fashion-MNIST 32 px; ships with the package, its images are given by --data",
            data="which holds the four files of Fashion-MNIST (Debian: apt-get install dataset-fashion-mnist; "
            "/usr/share/datasets/fashion-mnist)",
        ),
        *(_official(depth) for depth in (16, 20, 24, 30)),
        Preset(spec=_D36, summary="ImageNet 512 px; official checkpoint by --weights and --vae"),
    )
}


_READ_OFF_FILES: dict[str, Preset] = {}


def names() -> tuple[str, ...]:
    return tuple(_PRESETS)


def runs_on_a_cpu(name: str) -> bool:
    """Whether the preset is one of the small ones, whose weights ship."""
    return name in _PRESETS and _PRESETS[name].assets


def preset(name: str) -> Preset:
    known = _PRESETS | _READ_OFF_FILES
    if name not in known:
        raise UserError(f"no model preset {name!r}.{did_you_mean(name, _PRESETS)}")
    return known[name]


def of_sizes(spec: ModelSpec) -> Preset:
    """The preset of these sizes, the one that `spec` is called after if it has them; where none has them, one that this process
    knows from now on."""
    for known in sorted(_PRESETS.values(), key=lambda known: known.spec.name != spec.name):
        if replace(spec, name=known.spec.name) == known.spec:
            return known
    name = f"var-{spec.depth}x{spec.width}-{spec.image_side}px"
    found = Preset(spec=replace(spec, name=name), summary="sizes read off a checkpoint")
    return _READ_OFF_FILES.setdefault(name, found)


def asset_folder(name: str) -> Path:
    """Where the weights that the package ships for a preset lie; it need not be there."""
    return Path(str(resources.files("varbench"))) / "assets" / preset(name).spec.name


def scoring_network(name: str, kind: str) -> Path:
    """Where a preset's own network lies, `features` or `judge`, that scores where no file of the user's is to; it need not be there."""
    return asset_folder(name) / f"{kind}.safetensors"


def recipe_folder(assets: Path, recipe: str) -> Path:
    """Where trained weights of a recipe are put, of those that ship in this folder. What lies there is found by its record."""
    return assets / "recipes" / recipe.replace("@", "-")


def recipe_records(assets: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of all trained weights that ship in this one, and what is told of each."""
    for path in sorted(assets.glob(f"recipes/*/{RECORD}")):
        yield path.parent, json.loads(path.read_text())


def steps_that_ship(name: str, *, seed: int, steps: int | None) -> int | None:
    """Of the trainings whose weights ship, if they had this seed and so many steps; None is whatever number of them."""
    had = preset(name).shipped_steps
    return had if seed == SHIPPED_SEED and steps in (None, had) else None


def recipe_files(name: str, recipe: str) -> dict[str, Path]:
    """Weights that a preset ships and that were trained under this recipe's name, by backbone; empty where it ships none."""
    found = (folder for folder, told in recipe_records(asset_folder(name)) if told["row"] == recipe)
    return {path.stem: path for folder in found for path in sorted(folder.glob("*.safetensors"))}


def shipped_files(name: str, further: Mapping[str, ModelSpec] | None = None) -> dict[str, Path]:
    """Weight files of a preset, `vae` and `main`; empty where none are shipped.

    Of the `further` models that a method runs on, by its names, those whose sizes the preset ships too.
    """
    known, folder = preset(name), asset_folder(name)
    files = {part: folder / file for part, file in SHIPPED.items()}
    if not all(path.is_file() for path in files.values()):
        return {}
    for part, wanted in (further or {}).items():
        for file, spec in known.companions.items():
            if replace(wanted, name=spec.name) == spec and (folder / file).is_file():
                files[part] = folder / file
    return files
