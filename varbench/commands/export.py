"""`varbench export`: the trained weights of a recipe as one file, to be handed on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varbench.commands import usable_plugins
from varbench.errors import UserError

SHARED = ("model", "weights", "vae", "companion", "data", "seed", "steps")


HELP = "the trained weights of a recipe as one file"


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments

    parser = subparsers.add_parser(
        "export",
        help=HELP,
        description="Packs the weights of a row's recipe, those that ship or that were trained here, with their tokenizer and "
        "record into one file. `sample`, `run` and `load_pipeline` take it as --weights, without --vae.",
        epilog="examples:\n"
        "  varbench export variant --out variant.varbench\n"
        "  varbench run --plugins variant --weights variant.varbench",
    )
    parser.add_argument("row", metavar="ROW", help="a row whose recipe trains, as in method@recipe")
    add_arguments(parser, *SHARED, steps="optimiser steps that it was trained for; default: what ships had, else 60")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: METHOD-RECIPE.varbench")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench import rows
    from varbench.model.bundle import write_bundle
    from varbench.plan import presets
    from varbench.record.option_forms import given_in
    from varbench.record.options import Options
    from varbench.run.defaults import filled_in
    from varbench.run.messages import Job
    from varbench.run.tasks.training import asked
    from varbench.run.weight_files import weight_files
    from varbench.train.recipes import weights_ahead

    usable_plugins(args)
    given = {"model": presets.DEFAULT, **given_in(args, *SHARED)}
    preset = presets.preset(given["model"])
    trained = {row.recipe_name: row for row in rows.expand(args.row, preset.spec) if row.schedule is not None}
    if len(trained) != 1:
        what = f"{len(trained)} recipes ({', '.join(trained)})" if trained else "nothing that is trained"
        raise UserError(f"{args.row} is {what}; name one recipe, as in METHOD@RECIPE")
    ((recipe, row),) = trained.items()
    out = args.out or Path(f"{recipe.replace('@', '-')}.varbench")
    if out.exists():
        raise UserError(f"{out} is there already; give another name with --out, or remove it")
    own = any(name in given for name in ("weights", "data", "seed"))
    given.setdefault("steps", (None if own else preset.shipped_steps) or presets.SHORT_STEPS)
    options = Options(**filled_in(given))
    files = weight_files(options, row.policies.backbones)
    if files is None:
        raise UserError("--weights random: a recipe is trained from weights that are given, or that ship")
    _, found_from = asked(Job(task="training", options=options, model=preset.spec, files=files), row.name)
    found = weights_ahead(row, **found_from)
    if found is None:
        raise UserError(
            f"{recipe} is not trained with these options; train it first: varbench train {recipe} --steps N"
        )
    write_bundle(
        out, recipe=recipe, model=preset.spec, files={"vae": found_from["vae"], **found.files}, record=found.record
    )
    print(f"{out}  {recipe}, {found.origin}, {out.stat().st_size / 2**20:,.1f} MiB")
    return 0
