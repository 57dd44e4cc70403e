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
    if options.weights is not None and options.vae is None and (bundle := opened(options.weights)) is not None:
        return {**{part: str(path) for part, path in bundle.files.items()}, **extra}
    if options.weights is not None:
        given = {"vae": str(options.vae), "main": options.weights}
        published = published_files.companions(options, {part: further[part] for part in further if part not in extra})
        return {**{part: str(Path(path).resolve()) for part, path in given.items()}, **published, **extra}
    shipped = {part: str(path) for part, path in presets.shipped_files(options.model, further).items()}
    if not shipped and not presets.preset(options.model).assets:
        raise UserError(
            f"{options.model} ships no weights: give --weights and --vae, or --weights random to measure speed and memory only"
        )
    return {**shipped, **extra} if shipped else None
