"""`varbench export`: the trained weights of a recipe as one file, to be handed on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from varbench.commands import usable_plugins
from varbench.errors import UserError

if TYPE_CHECKING:
    from varbench.rows.grammar import Row

Packed = tuple[dict[str, Path], Mapping[str, Any], str]
"""Files by part, the record of their training, and where they come from in words."""

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
        "  varbench run --plugins variant --weights variant.varbench\n"
        "  varbench export variant --model var-d30 --vae vae_ch160v4096z32.pth --from DIR --out variant.varbench",
    )
    parser.add_argument("row", metavar="ROW", help="a row whose recipe trains, as in method@recipe")
    add_arguments(parser, *SHARED, steps="optimiser steps that it was trained for; default: what ships had, else 60")
    parser.add_argument(
        "--from",
        dest="trained",
        type=Path,
        metavar="DIR",
        help="what `varbench train --out DIR` wrote, whatever options it had; give beside it only what was not trained, as the "
        "tokenizer (--vae)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: METHOD-RECIPE.varbench")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench import rows
    from varbench.model.bundle import write_bundle
    from varbench.model.state_files import complete
    from varbench.plan import presets
    from varbench.record.option_forms import given_in

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
    files, record, origin = _found(row, given) if args.trained is None else _taken(row, given, args.trained)
    with TemporaryDirectory(dir=out.resolve().parent) as folder:
        whole = {part: complete(file, Path(folder)) for part, file in files.items()}
        write_bundle(out, recipe=recipe, model=preset.spec, files=whole, record=record)
    print(f"{out}  {recipe}, {origin}, {out.stat().st_size / 2**20:,.1f} MiB")
    return 0


def _found(row: Row, given: dict[str, Any]) -> Packed:
    """What ships, or was trained here with these options and none that they lack."""
    from varbench.plan import presets
    from varbench.record.options import Options
    from varbench.run.defaults import filled_in
    from varbench.run.messages import Job
    from varbench.run.tasks.training import asked
    from varbench.run.weight_files import weight_files
    from varbench.train.recipes import weights_ahead

    own = any(name in given for name in ("weights", "data", "seed"))
    given.setdefault("steps", (None if own else presets.preset(given["model"]).shipped_steps) or presets.SHORT_STEPS)
    options = Options(**filled_in(given))
    files = weight_files(options, row.policies.backbones)
    if files is None:
        raise UserError("--weights random: a recipe is trained from weights that are given, or that ship")
    _, found_from = asked(Job(task="training", options=options, model=row.model, files=files), row.name)
    found = weights_ahead(row, **found_from)
    if found is None or found.record is None:
        raise UserError(
            f"{row.recipe_name} is not trained with these options; train it first (varbench train {row.recipe_name} --steps N "
            "--out DIR), or give what was written there by --from DIR"
        )
    return {"vae": found_from["vae"], **found.files}, found.record, str(found.origin)


def _taken(row: Row, given: dict[str, Any], folder: Path) -> Packed:
    """What a training wrote, whatever its options were; only what it did not train is given beside it."""
    from varbench.base.hashing import file_hash
    from varbench.plan import presets
    from varbench.policies import MAIN
    from varbench.run.defaults import companions
    from varbench.train.shipped import taken

    for name in ("data", "seed", "steps"):
        if name in given:
            raise UserError(f"--{name} has no effect on what was trained before; leave it out beside --from")
    own, record = taken(folder, row.recipe_name)
    if record.get("model", row.model.name) != row.model.name:
        raise UserError(f"{folder} holds weights of {record['model']}; give --model {record['model']}")
    beside = {"vae": given.get("vae"), MAIN: given.get("weights"), **companions(given.get("companion", ()))}
    files = presets.shipped_files(row.model.name, row.policies.backbones)
    files |= {part: Path(file) for part, file in beside.items() if file is not None}
    for part in ("vae", MAIN, *row.policies.backbones):
        option = {"vae": "--vae FILE", MAIN: "--weights FILE"}.get(part, f"--companion {part}=FILE")
        if part in own:
            if beside.get(part) is not None:
                raise UserError(f"{option} has no effect, since {folder} holds that part; leave it out beside --from")
            continue
        if part not in files:
            raise UserError(f"{folder} does not hold the {part} of {row.recipe_name}; give it by {option}")
        if record.get("from", {}).get(part, sha256 := file_hash(files[part])) != sha256:
            raise UserError(f"{folder} was trained with another {part} than {files[part]}; give its own by {option}")
    return {**files, **own}, record, f"from {folder}"
