"""What a run is asked to do: the command line over a TOML file over what suits preset and machine."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from varbench.errors import UserError, did_you_mean
from varbench.plan import presets
from varbench.run.inputs import sizes_of

DTYPES = ("float32", "bfloat16", "float16")
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
FEWEST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    plugins: str
    model: str
    weights: str | None
    """Path of the transformer, `random`, or None for what the preset ships."""
    vae: str | None
    companion: tuple[str, ...]
    reference: str | None
    inception: str | None
    data: str | None
    batch: int
    dtype: str
    device: str
    compile: str
    seed: int
    steps: int | None
    """Optimiser steps of a recipe; None is the preset's own budget."""
    study: tuple[str, ...]
    cfg: float
    top_k: int
    top_p: float
    images: int
    rounds: int
    count: int
    seconds: float
    timeout: float
    memory_limit: int | None
    quick: bool
    all_settings: bool
    second_opinion: bool
    fresh: bool
    """Quality and memory are measured again, though an earlier run on this machine left its findings."""


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What a preset is measured under unless told otherwise."""

    cfg: float
    top_k: int
    top_p: float
    batch: int
    count: int
    seconds: float
    images: int
    quick_images: int
    quick_batch: int


# Two CPU cores make no more images a second with larger batches, and ten minutes have to do for fourteen rows.
_TINY = _Defaults(
    cfg=1.5, top_k=0, top_p=0.0, batch=32, count=3, seconds=0.2, images=2_000, quick_images=200, quick_batch=16
)
_IMAGENET = _Defaults(
    cfg=1.5, top_k=900, top_p=0.96, batch=64, count=6, seconds=3.0, images=50_000, quick_images=2_000, quick_batch=64
)

KEYS = {
    "plugins": str, "model": str, "weights": str, "vae": str, "companion": list, "reference": str, "inception": str,
    "data": str, "batch": int, "dtype": str, "device": str, "compile": str, "seed": int, "steps": int, "study": list,
    "images": int, "rounds": int, "timeout": float, "memory_limit": float, "quick": bool, "all_settings": bool, "second_opinion": bool, "fresh": bool, "out": str,
}  # fmt: skip
"""Keys of `--config`, with their types; the same names as on the command line, `_` or `-` alike."""


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a TOML file, each checked against its type."""
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error})") from error
    found = {}
    for written, value in data.items():
        key = written.replace("-", "_")
        if key not in KEYS:
            raise UserError(f"{path}: no key {written!r}.{did_you_mean(key, KEYS)}")
        if key == "plugins" and isinstance(value, list):
            value = ",".join(map(str, value))
        wanted = KEYS[key]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
            raise UserError(f"{path}: {written} is {value!r}; give a {wanted.__name__}")
        found[key] = value
    return found


def resolve(args: argparse.Namespace) -> Options:
    """Everything that is not given is filled in; what cannot be is a `UserError`."""
    given = read_config(args.config) if args.config else {}
    given |= {key: getattr(args, key) for key in KEYS if _is_given(getattr(args, key, None))}
    preset = _preset(given)
    model = preset.spec.name
    defaults = _TINY if preset.assets else _IMAGENET
    quick = bool(given.get("quick", False))
    device = given.get("device") or _device(preset)
    scored = preset.assets or given.get("reference") is not None
    # Without a reference there are no scores, and images only where they were asked for: to look at, and to hold against the
    # full model's.
    images = given.get("images", (defaults.quick_images if quick else defaults.images) if scored else 0)
    limit = given.get("memory_limit")
    options = Options(
        plugins=given.get("plugins", ""),
        model=model,
        weights=given.get("weights"),
        vae=given.get("vae"),
        companion=tuple(given.get("companion", ())),
        reference=given.get("reference"),
        inception=given.get("inception"),
        data=given.get("data"),
        batch=given.get("batch", defaults.quick_batch if quick else defaults.batch),
        dtype=given.get("dtype") or _dtype(device),
        device=device,
        compile=given.get("compile", "off"),
        seed=given.get("seed", 0),
        steps=given.get("steps"),
        study=tuple(given.get("study", ())),
        cfg=defaults.cfg,
        top_k=min(defaults.top_k, preset.spec.tokenizer.vocabulary),
        top_p=defaults.top_p,
        images=images if _has_weights(given, model) else 0,
        rounds=given.get("rounds", 1 if quick else FEWEST_ROUNDS),
        count=3 if quick else defaults.count,
        seconds=0.2 if quick else defaults.seconds,
        timeout=given.get("timeout", 600.0),
        memory_limit=None if limit is None else round(limit * 2**30),
        quick=quick,
        all_settings=bool(given.get("all_settings", False)),
        second_opinion=bool(given.get("second_opinion", False)),
        fresh=bool(given.get("fresh", False)),
    )
    _check(options)
    return options


def _is_given(value: Any) -> bool:
    return not (value is None or value is False or value == [])


def _preset(given: dict[str, Any]) -> presets.Preset:
    """The preset that is asked for; else that of the sizes of the files that are given; else the default."""
    vae, var = (Path(given.get(name) or "") for name in ("vae", "weights"))
    if "model" not in given and vae.is_file() and var.is_file():
        return presets.of_sizes(sizes_of(vae=vae, var=var))
    return presets.preset(given.get("model", presets.DEFAULT))


def _has_weights(given: dict[str, Any], model: str) -> bool:
    """Random weights make images that say nothing of quality."""
    weights = given.get("weights")
    return weights != "random" and (weights is not None or bool(presets.shipped_files(model)))


def _device(preset: presets.Preset) -> str:
    """`tiny` is a CPU's; the large models run on a GPU where the driver shows one. CUDA is not touched for it."""
    if preset.assets:
        return "cpu"
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except Exception:  # no library, no driver, no permission: all mean that there is no GPU to be had
        return "cpu"
    return "cuda" if count else "cpu"


def _dtype(device: str) -> str:
    """16 bit, save on a CPU whose instructions have no bfloat16, where it is slower."""
    if device != "cpu":
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _check(options: Options) -> None:
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype {options.dtype!r} is unknown.{did_you_mean(options.dtype, DTYPES)}")
    if options.compile not in COMPILE_MODES:
        raise UserError(f"--compile {options.compile!r} is unknown.{did_you_mean(options.compile, COMPILE_MODES)}")
    if not (options.device == "cpu" or options.device.startswith("cuda")):
        raise UserError(f"--device {options.device!r} is unknown; give cpu, cuda or cuda:N")
    for name, least in (("batch", 1), ("rounds", 1), ("images", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}; give {least} or more")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps is {options.steps}; give 1 or more")
    if options.timeout <= 0:
        raise UserError(f"--timeout is {options.timeout:g} s; give more than 0")
    for name in ("vae", "reference", "inception", "data"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise UserError(f"--{name} {path}: no such file or folder")
    if options.weights not in (None, "random"):
        if not Path(str(options.weights)).is_file():
            raise UserError(f"--weights {options.weights}: no such file; give a checkpoint's path, or `random`")
        if options.vae is None:
            raise UserError("--weights needs --vae: a transformer speaks the codes of its own tokenizer")
    elif options.vae is not None:
        given = "random weights are asked for" if options.weights else "no --weights are given"
        raise UserError(
            f"--vae {options.vae}, but {given}; give both files, as in --weights var_d16.pth --vae {options.vae}"
        )
    if (
        options.reference is not None
        and options.images
        and options.inception is None
        and not presets.preset(options.model).assets
    ):
        raise UserError(
            f"--reference {options.reference}: scores against it need the published Inception weights, which are not "
            "downloaded for you: give their path, --inception FILE, or --images 0 to leave quality out"
        )
    if options.inception is not None and options.reference is None and not presets.preset(options.model).assets:
        raise UserError(f"--inception {options.inception}: there is nothing to compare with; give --reference PATH too")
    if 0 < options.images < 20:
        raise UserError(
            f"{options.images} images are too few to score; give --images 20 or more, or 0 to leave quality out"
        )
    for pair in options.companion:
        name, equals, path = pair.partition("=")
        if not equals or not Path(path).is_file():
            raise UserError(f"--companion {pair}: give NAME=FILE of a file that is there, as in refiner=var_d16.pth")


def companions(options: Options) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in options.companion)


def as_arguments(options: Options, *, row: str, study: str | None = None) -> list[str]:
    """The command line that measures one row, or the study that it is part of, under the same options."""
    plain = {field.name: getattr(options, field.name) for field in fields(options)}
    known = options.model in presets.names()  # else its sizes were read off the files, and are again
    asked = ("--plugins", row) if study is None else ("--study", study)
    words = ["varbench", "run", *asked, *(("--model", options.model) if known else ())]
    for name in ("weights", "vae", "reference", "inception", "data"):
        if plain[name] is not None:
            words += [f"--{name}", str(plain[name])]
    for pair in options.companion:
        words += ["--companion", pair]
    for name in ("batch", "dtype", "device", "compile", "seed", "images", "rounds"):
        words += [f"--{name}", str(plain[name])]
    if options.steps is not None:
        words += ["--steps", str(options.steps)]
    return [*words, *(["--quick"] if options.quick else [])]
