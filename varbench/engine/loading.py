"""`load_pipeline`: a pipeline from checkpoint files, of a preset with its shipped weights, or with random ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from varbench.base.devices import check_device
from varbench.base.hashing import file_hash
from varbench.engine.pipeline import DTYPES, Pipeline
from varbench.errors import CheckpointError, UserError
from varbench.model.bundle import opened
from varbench.model.checkpoints import build_tokenizer, load_tokenizer, load_transformer
from varbench.model.state_files import read_record
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer, initialise_
from varbench.plan import presets
from varbench.policies import MAIN
from varbench.spec import ModelSpec


def load_pipeline(
    preset: str | None = None,
    *,
    vae: str | Path | None = None,
    var: str | Path | None = None,
    companions: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    num_heads: int | None = None,
    random: bool = False,
    seed: int = 0,
    recipe: str | None = None,
) -> Pipeline:
    """A pipeline from checkpoint files, or of a preset.

    With `vae` and `var`, or with `var` alone where it is a file of `varbench export`, sizes are read off the files. With a
    preset alone, its shipped weights are loaded, or with `random` random ones drawn from `seed`, or those that it ships under the name
    of a `recipe`, as in `method@recipe`. `companions` are further models by name, for methods that run on two; of a preset, those
    that are not given are found as its own weights are.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    check_device(device)
    if vae is None and var is not None and (bundle := opened(var)) is not None:
        vae, var = bundle.files["vae"], bundle.files[MAIN]
        own = {part: path for part, path in bundle.files.items() if part not in ("vae", MAIN)}
        companions = {**own, **(companions or {})}
    if (vae is None) != (var is None):
        raise CheckpointError(
            "give both vae= and var=, or neither; a transformer speaks the codes of its own tokenizer"
        )
    if random and vae is not None:
        raise UserError("random=True draws weights, and vae= and var= give them; leave one of the two out")
    if recipe is not None and (random or vae is not None):
        raise UserError("recipe= loads weights that a preset ships; leave vae= and var=, or random=True, out")
    if vae is None or var is None:
        return _preset_pipeline(
            preset or "tiny", companions, device=device, dtype=dtype, random=random, seed=seed, recipe=recipe
        )
    tokenizer_spec, tokenizer_state = load_tokenizer(vae)
    backbones = {MAIN: load_transformer(var, tokenizer_spec, num_heads=num_heads)}
    for name, path in (companions or {}).items():
        backbones[name] = load_transformer(path, tokenizer_spec)
    spec = backbones[MAIN].spec
    for name, path in (companions or {}).items():
        other = backbones[name].spec
        if (other.sides, other.classes) != (spec.sides, spec.classes):
            raise CheckpointError(
                f"{path}: scales {other.sides} and {other.classes} classes, but {var}, whose {name} it is to be, has "
                f"{spec.sides} and {spec.classes}"
            )
    if preset:
        spec = _renamed(backbones, preset, var)
    files = {MAIN: var, **(companions or {})}
    return Pipeline(
        tokenizer=build_tokenizer(spec, tokenizer_state, vae),
        backbones=backbones,
        device=device,
        dtype=dtype,
        weights={name: file_hash(path) for name, path in {"vae": vae, **files}.items()},
        recipes={name: (read_record(path) or {}).get("row") for name, path in files.items()},
    )


def _renamed(backbones: dict[str, Transformer], preset: str, path: str | Path) -> ModelSpec:
    """The file's own sizes under the preset's name; other sizes than the preset's are refused with both."""
    expected, found = presets.preset(preset).spec, backbones[MAIN].spec
    if replace(found, name=preset) != expected:
        raise CheckpointError(
            f"{path}: {found.depth} layers of width {found.width} and scales {found.sides}, but {preset} has "
            f"{expected.depth} of width {expected.width} and {expected.sides}"
        )
    backbones[MAIN].spec = expected
    return expected


def _preset_pipeline(
    name: str,
    companions: Mapping[str, str | Path] | None,
    *,
    device: str,
    dtype: str,
    random: bool,
    seed: int,
    recipe: str | None,
) -> Pipeline:
    preset = presets.preset(name)
    shipped = presets.shipped_files(name)
    if recipe is not None:
        trained = presets.recipe_files(name, recipe)
        if not trained:
            raise UserError(
                f"{name} ships no trained weights of {recipe!r}; `varbench train {recipe}` trains them and says where they lie"
            )
        shipped |= trained
        companions = {**{part: path for part, path in trained.items() if part != MAIN}, **(companions or {})}
    if shipped and not random:
        vae, var = shipped["vae"], shipped[MAIN]
        pipe = load_pipeline(name, vae=vae, var=var, companions=companions, device=device, dtype=dtype)
        pipe.find = functools.partial(_shipped, name)
        return pipe
    if not random:
        raise UserError(
            f"{name} ships no weights; give vae= and var=, or random=True for random ones, on which speed and memory can "
            "be measured and nothing can be seen"
        )
    drawn = f"random, seed {seed}"
    return Pipeline(
        tokenizer=random_tokenizer(preset.spec, seed),
        backbones={MAIN: random_transformer(preset.spec, seed, device=device)},
        device=device,
        dtype=dtype,
        weights={"vae": drawn, MAIN: drawn},
        find=lambda _, spec: (random_transformer(spec, seed, device=device), drawn),
    )


def _shipped(preset: str, name: str, spec: ModelSpec) -> tuple[Transformer, str] | None:
    path = presets.shipped_files(preset, {name: spec}).get(name)
    if path is None:
        return None
    model = load_transformer(path, spec.tokenizer)
    model.spec = spec
    return model, file_hash(path)


def random_tokenizer(spec: ModelSpec, seed: int) -> Tokenizer:
    """A tokenizer with torch's own initial values; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tokenizer.for_model(spec).requires_grad_(False)


def random_transformer(spec: ModelSpec, seed: int, *, device: str = "cpu") -> Transformer:
    """A transformer with official initial values, drawn where it will run: billions of numbers take long on a CPU."""
    with torch.device("meta"):
        model = Transformer(spec)
    # Not `to_empty`, which takes longer than the drawing: on the meta device it goes through torch's own Python.
    state = model.state_dict()
    model.load_state_dict({key: torch.empty(state[key].shape, device=device) for key in state}, assign=True)
    return initialise_(model, torch.Generator(device).manual_seed(seed)).requires_grad_(False)
