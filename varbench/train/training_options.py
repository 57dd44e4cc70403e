"""The options of a training, beside those that it shares with a measurement. No torch.

How the optimiser goes is the same for every schedule that is compared, unless somebody asks for something else here. A recipe's
stages may differ from each other in that, by a table of a configuration file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varbench.errors import UserError
from varbench.record.option_forms import options_in, read_toml
from varbench.record.options import Options, asked, option

SHARED = ("model", "weights", "vae", "companion", "device", "dtype", "batch", "seed", "steps", "data", "out")
OPTIMISER = {
    "rate": "peak_rate", "warm_up": "warm_up", "floor": "floor", "weight_decay": "weight_decay", "class_drop": "class_drop",
    "mean_decay": "mean_decay",
}  # fmt: skip
"""How the optimiser goes, and what a budget calls it; a recipe's stages may differ in these."""

_OF_TRANSFORMERS = (
    "companion", "dtype", "vae", "weights", "parts", "recompute", *(name for name in OPTIMISER if name != "rate")
)  # fmt: skip
WITHOUT_EFFECT = {
    "tokenizer": _OF_TRANSFORMERS,
    **dict.fromkeys(("base", "narrow"), ("companion",)),
    **dict.fromkeys(("features", "judge"), ("rate", "batch", *_OF_TRANSFORMERS)),
}
"""Options that a training does not read; given, they would look as if they did."""

ByStage = Mapping[str, Mapping[str, Any]]
"""By the name of a stage, what of its budget differs."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What `varbench train` can be told, by flags or in a file."""

    what: str = option("what is trained, as on the command line", default="")
    tokens: str | None = option(
        "a folder of `varbench tokens`, in the place of images (--data)", absent="none", metavar="DIR", path="folder"
    )
    rate: float | None = option(
        "peak learning rate, as in 0.0003", absent="what the shipped weights had", metavar="RATE", above=0, most=1
    )
    warm_up: float | None = option(
        "share of the steps over which it rises", absent="0.03", metavar="SHARE", least=0, most=1
    )
    floor: float | None = option("share of it that is left at the end", absent="0.02", metavar="SHARE", least=0, most=1)
    weight_decay: float | None = option("AdamW's, of all that is no vector", absent="0.05", metavar="X", least=0)
    class_drop: float | None = option(
        "share of the images whose class is left out", absent="0.1", metavar="SHARE", least=0, most=1
    )
    mean_decay: float | None = option(
        "of the running mean of the weights, which is what is written", absent="by the number of steps", metavar="X",
        least=0, most=1,
    )  # fmt: skip
    parts: int = option(
        "compute every batch in N parts, whose gradients are added up: less memory, the same training", default=1,
        metavar="N", least=1,
    )  # fmt: skip
    recompute: bool = option(
        "keep no activations within layers, and compute them again in the backward pass: less memory, a third more work",
        default=False,
    )
    tensorboard: str | None = option("also write event files for TensorBoard", absent="none", metavar="FOLDER")


OWN = tuple(name for name in asked(TrainingOptions) if name not in asked(Options) and name != "what")


def configured(path: Path) -> tuple[dict[str, Any], ByStage]:
    """What a TOML file says of a training, at its top or under `[train]`, and of a recipe's stages under `[stages.NAME]`."""
    data = read_toml(path)
    stages = data.pop("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(table, dict) for table in stages.values()):
        raise UserError(f"{path}: stages is {stages!r}; give a table for each, as in [stages.second]")
    given = options_in(data, path, "what", *SHARED, *OWN, kind=TrainingOptions, table="train")
    for name, value in given.items():
        if isinstance(value, tuple) and name != "companion":
            raise UserError(f"{path}: {name} is {list(value)}; a training has one")
    by_stage = {
        name: options_in(table, path, *OPTIMISER, kind=TrainingOptions, within=f"stages.{name}.")
        for name, table in stages.items()
    }
    return given, {name: {OPTIMISER[key]: value for key, value in told.items()} for name, told in by_stage.items()}
