"""Models by name: their geometry, a narrower partner for methods that run two, and whether weights are shipped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from varbench.errors import UserError, did_you_mean
from varbench.spec import SIDES_256, SIDES_512, ModelSpec, TokenizerSpec

DEFAULT = "tiny"
SHIPPED = {"vae": "tokenizer.safetensors", "main": "base.safetensors", "refiner": "narrow.safetensors"}
"""Files under `assets/<preset>/`, by the part of a pipeline that they fill."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    spec: ModelSpec
    companion: ModelSpec | None = None
    """A narrower model on the same tokenizer, for methods that run two."""
    assets: bool = False
    """Whether the package ships its weights; those of other presets are given by path, or drawn at random."""
    summary: str = ""


def _official(depth: int, companion: ModelSpec | None = None) -> Preset:
    spec = ModelSpec(name=f"var-d{depth}", sides=SIDES_256, depth=depth, width=64 * depth, heads=depth)
    return Preset(spec=spec, companion=companion, summary="ImageNet 256 px; official checkpoint by --weights and --vae")


_TINY = ModelSpec(
    name="tiny",
    sides=(1, 2, 3, 4, 6, 8),
    depth=16,
    width=128,
    heads=4,
    classes=10,
    tokenizer=TokenizerSpec(channels=32, multipliers=(1, 2, 2), blocks=1, code_dim=16, vocabulary=512, phis=4),
)
_D16 = _official(16)
_D36 = ModelSpec(name="var-d36", sides=SIDES_512, depth=36, width=64 * 36, heads=36, shared_adaln=True)

_PRESETS = {
    preset.spec.name: preset
    for preset in (
        Preset(
            spec=_TINY,
            companion=replace(_TINY, name="tiny-narrow", width=64, heads=2),
            assets=True,
            summary="procedural shapes 32 px; ships with the package, runs on a CPU",
        ),
        _D16,
        *(_official(depth, _D16.spec) for depth in (20, 24, 30)),
        Preset(spec=_D36, summary="ImageNet 512 px; official checkpoint by --weights and --vae"),
    )
}


_READ_OFF_FILES: dict[str, Preset] = {}


def names() -> tuple[str, ...]:
    return tuple(_PRESETS)


def preset(name: str) -> Preset:
    known = _PRESETS | _READ_OFF_FILES
    if name not in known:
        raise UserError(f"no model preset {name!r}.{did_you_mean(name, _PRESETS)}")
    return known[name]


def of_sizes(spec: ModelSpec) -> Preset:
    """The preset of these sizes, whatever `spec` is called; where none has them, one that this process knows from now on."""
    for known in _PRESETS.values():
        if replace(spec, name=known.spec.name) == known.spec:
            return known
    name = f"var-{spec.depth}x{spec.width}-{spec.image_side}px"
    found = Preset(spec=replace(spec, name=name), summary="sizes read off a checkpoint")
    return _READ_OFF_FILES.setdefault(name, found)


def companion(model: ModelSpec) -> ModelSpec:
    """The preset's narrower model; for a model of other sizes, one of half the width and heads."""
    known = _PRESETS.get(model.name)
    if known is not None and known.spec == model and known.companion is not None:
        return known.companion
    if model.heads % 2:
        raise UserError(
            f"{model.name} has {model.heads} heads, so no narrower model of half its width and heads exists"
        )
    return replace(model, name=f"{model.name}-narrow", width=model.width // 2, heads=model.heads // 2)


def asset_folder(name: str) -> Path:
    """Where the weights that the package ships for a preset lie; it need not be there."""
    return Path(str(resources.files("varbench"))) / "assets" / preset(name).spec.name


def shipped_files(name: str) -> dict[str, Path]:
    """Weight files of a preset by the part they fill, `vae`, `main`, `refiner`; empty where none are shipped."""
    files = {part: asset_folder(name) / file for part, file in SHIPPED.items()}
    if not (files["vae"].is_file() and files["main"].is_file()):
        return {}
    return {part: path for part, path in files.items() if path.is_file()}
