"""Defaults that depend on the preset and the machine, and checks that span several options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varbench.base.instructions import fast_bfloat16
from varbench.errors import UserError
from varbench.model.bundle import recipe_in, sizes_in
from varbench.plan import presets
from varbench.record.option_forms import given_in, read_config, swept
from varbench.record.options import Options, asked
from varbench.run.inputs import sizes_of
from varbench.run.published_files import under_protocol
from varbench.spec import ModelSpec


def resolve(args: argparse.Namespace, *, kind: type[Options] = Options) -> tuple[Options, ...]:
    """Options of the command line, else of a TOML file, else defaults; `UserError` if they do not go together. Of an option
    that has several values, one set of options for each."""
    given = read_config(args.config, kind=kind) if args.config else {}
    given |= given_in(args, kind=kind)
    return tuple(_resolved(one, kind) for one in swept(under_protocol(given), kind=kind))


def _resolved(given: dict[str, Any], kind: type[Options]) -> Options:
    preset = _preset(given)
    chosen = filled_in({**given, "model": preset.spec.name}, kind=kind)
    looks = preset.assets or "features" in given
    if "images" not in given and not (preset.draws_images or "reference" in given or (looks and "data" in given)):
        # Without a reference there are no scores, and images only where they were asked for: to look at, and to hold against
        # the full model's.
        chosen["images"] = 0
    if not _has_weights(given, preset):
        chosen["images"] = 0  # random weights make images that say nothing of quality
    if "top_k" not in given:
        chosen["top_k"] = min(chosen["top_k"], preset.spec.tokenizer.vocabulary)
    if chosen["steps"] is None and not chosen["quick"]:
        # Of what ships, if it can be used: rows of one table shall have been trained for equally long.
        own = chosen["train"] or chosen["seed"] or any(chosen[given] for given in ("weights", "vae"))
        own = own or (preset.draws_images and chosen["data"])
        chosen["steps"] = (None if own else preset.shipped_steps) or presets.SHORT_STEPS
    options = kind(**chosen)
    _check(options, preset)
    return options


def filled_in(given: dict[str, Any], *, kind: type[Options] = Options) -> dict[str, Any]:
    """The given options, which include the model, and defaults for the rest. A model that is no preset gets those of a large
    one."""
    model, quick = given["model"], given.get("quick", False)
    device = given.get("device") or _device(model)
    found = {"device": device, "dtype": _dtype(device)}
    usual = {name: found.get(name, option.usual(model, quick=quick)) for name, option in asked(kind).items()}
    return {**usual, **given}


def companions(given: tuple[str, ...]) -> dict[str, str]:
    """The files of `--companion NAME=FILE` by name."""
    return dict(pair.split("=", 1) for pair in given)


def _preset(given: dict[str, Any]) -> presets.Preset:
    """The preset that is asked for; else that of the sizes of the files that are given; else the default."""
    if "model" not in given and (packed := _packed(given)) is not None:
        return presets.of_sizes(packed)
    if "model" not in given and "vae" in given and given.get("weights", "random") != "random":
        return presets.of_sizes(sizes_of(vae=Path(given["vae"]), var=Path(given["weights"])))
    return presets.preset(given.get("model", presets.DEFAULT))


def _packed(given: dict[str, Any]) -> ModelSpec | None:
    """The sizes of a file of `varbench export`, which has its tokenizer inside."""
    weights = given.get("weights", "random")
    return None if weights == "random" or "vae" in given else sizes_in(weights)


def _has_weights(given: dict[str, Any], preset: presets.Preset) -> bool:
    weights = given.get("weights")
    return weights != "random" and (weights is not None or bool(presets.shipped_files(preset.spec.name)))


def _device(model: str) -> str:
    """The small ones are a CPU's; the large models run on a GPU where the driver shows one. CUDA is not touched for it."""
    if presets.runs_on_a_cpu(model):
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
    return "bfloat16" if fast_bfloat16() else "float32"


def _check(options: Options, preset: presets.Preset) -> None:
    if options.address is not None and options.executor != "ray":
        raise UserError(f"--address {options.address} is a Ray cluster's: give --executor ray too")
    if options.kind is not None and options.executor != "ray":
        raise UserError(f"--kind {options.kind} is of devices of a Ray cluster: give --executor ray too")
    if options.executor == "ray" and ":" in options.device:
        raise UserError(f"--device {options.device}: --executor ray takes all GPUs of a kind; give --device cuda")
    if options.top_k > preset.spec.tokenizer.vocabulary:
        raise UserError(f"--top-k is {options.top_k}; {options.model} has {preset.spec.tokenizer.vocabulary} codes")
    packed = None if options.weights in (None, "random") else recipe_in(options.weights)
    if options.weights not in (None, "random") and options.vae is None and packed is None:
        raise UserError("--weights needs --vae: a transformer speaks the codes of its own tokenizer")
    if packed is not None and options.vae is not None:
        raise UserError(f"--vae {options.vae}: {options.weights} has its tokenizer inside; leave --vae out")
    if options.weights in (None, "random") and options.vae is not None:
        given = "random weights are asked for" if options.weights else "no --weights are given"
        raise UserError(
            f"--vae {options.vae}, but {given}; give both files, as in --weights var_d16.pth --vae {options.vae}"
        )
    if options.inception is not None and options.features is not None:
        raise UserError(
            f"--inception {options.inception} and --features {options.features}: one of them looks; leave one out"
        )
    looks = options.inception or options.features
    if options.reference is not None and options.images and looks is None and not preset.assets:
        raise UserError(
            f"--reference {options.reference}: scores against it need the published Inception weights, which are not "
            "downloaded for you: give their path, --inception FILE, or --images 0 to leave quality out"
        )
    if looks is not None and options.reference is None and options.data is None and not preset.draws_images:
        flag = "--features" if options.inception is None else "--inception"
        raise UserError(f"{flag} {looks}: there is nothing to compare with; give --reference PATH too")
    if options.quick and not options.rounds:
        raise UserError("--quick makes images and times them in the same processes; leave it out, or --rounds 0")
    if 0 < options.images < 20:
        raise UserError(
            f"{options.images} images are too few to score; give --images 20 or more, or 0 to leave quality out"
        )
