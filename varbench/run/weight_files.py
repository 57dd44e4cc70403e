"""Which weight files a run's rows load, before any recipe is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from varbench.errors import UserError
from varbench.model.bundle import opened
from varbench.plan import presets
from varbench.record.options import Options
from varbench.run import published_files
from varbench.run.defaults import companions
from varbench.spec import ModelSpec


def weight_files(options: Options, further: Mapping[str, ModelSpec]) -> dict[str, str] | None:
    """Files by part: those given, else those that the preset ships, else none, which means random weights.

    `further` are the models that rows run on beside the main one.
    """
    if options.weights == "random":
        return None
    extra = {part: str(Path(path).resolve()) for part, path in companions(options.companion).items()}
    if options.weights is not None:
        bundle = opened(options.weights) if options.vae is None else None
        files = {"vae": str(options.vae), "main": options.weights} if bundle is None else bundle.files
        given = {**{part: str(Path(path).resolve()) for part, path in files.items()}, **extra}
        lacking = {part: wanted for part, wanted in further.items() if part not in given}
        return {**given, **published_files.companions(options, lacking)}
    shipped = {part: str(path) for part, path in presets.shipped_files(options.model, further).items()}
    if not shipped and not presets.preset(options.model).assets:
        raise UserError(
            f"{options.model} ships no weights: give --weights and --vae, or --weights random to measure speed and memory only"
        )
    return {**shipped, **extra} if shipped else None
