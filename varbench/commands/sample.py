"""`varbench sample`: images of one or more rows, same classes and noise, in one PNG."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench.commands import usable_plugins
from varbench.errors import UserError

if TYPE_CHECKING:
    from varbench.engine.pipeline import Pipeline
    from varbench.rows.grammar import Row

NOTHING_SELECTED = 4
OF_MODEL = ("model", "weights", "vae", "companion", "device", "dtype", "seed")
SHARED = (*OF_MODEL, "cfg", "top_k", "top_p")
"""Options that mean what they mean in a run."""


HELP = "images of one or more rows, same classes and noise, in one PNG"
COMPUTES = True


def add_options_of_model(parser: argparse.ArgumentParser, *names: str) -> None:
    """Those of these names, and what `open_pipeline` takes beside them."""
    from varbench.record.option_forms import add_arguments

    add_arguments(parser, *names)
    parser.add_argument(
        "--heads", type=int, metavar="N", help="heads, where the checkpoint does not tell (plain attention)"
    )


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help=HELP,
        description="Draws images with the weights that are given, or the preset's own, and puts them into one PNG: a line for "
        "each row, a column for each image. Of a preset, rows run on the trained weights that it ships for their recipe.",
        epilog="examples:\n"
        "  varbench sample full_var,variant@d8,variant@d2\n"
        "  varbench sample variant@d16 --model var-d30 --weights var_d30.pth --vae vae_ch160v4096z32.pth --labels 207,88\n"
        "  varbench sample code@n8 --model var-d30 --weights random",
    )
    parser.add_argument("methods", metavar="ROWS", nargs="?", help="rows by comma; default: the full model")
    add_options_of_model(parser, *SHARED)
    parser.add_argument(
        "--labels", metavar="CLASSES", help="class numbers by comma; default: 8 spread over all classes"
    )
    parser.add_argument("--out", type=Path, default=Path("sample.png"), metavar="FILE", help="default: sample.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench import rows
    from varbench.policies import MAIN
    from varbench.record.option_forms import given_in

    if args.out.exists():
        raise UserError(f"{args.out} is there already; give another name with --out, or remove it")
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: images are written as PNG; give a name that ends with .png")
    manager = usable_plugins(args)
    given = given_in(args, *SHARED)
    pipe, options = open_pipeline(given, heads=args.heads)
    asked = rows.expand(rows.FULL if args.methods is None else args.methods, pipe.model, manager=manager)
    if not asked:
        print(f"varbench sample: error: {args.methods!r} names no row; give NAME or NAME@POINT", file=sys.stderr)
        return NOTHING_SELECTED
    labels = _labels(args.labels, pipe.model.classes)
    lines: list[Any] = []
    pipes: dict[str | None, Pipeline] = {None: pipe}
    for row in asked:
        shipped = _shipped_recipe(row, given, pipe.model.name)
        recipe = None if shipped is None else row.recipe_name
        if recipe not in pipes:
            pipes[recipe], _ = open_pipeline(given, heads=args.heads, recipe=shipped)
            pipes[recipe].recipes = {MAIN: recipe}  # whatever it was called when it trained them
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            output = pipes[recipe].generate(labels, **options, method=row)
        lines.append(output.images)
        print(f"{row.name}: {len(labels)} images in {time.perf_counter() - start:.2f} s", file=sys.stderr)
        for warning in noted:
            print(f"warning: {warning.message}", file=sys.stderr)
    _write_grid(lines, args.out)
    print(args.out)
    return 0


def _shipped_recipe(row: Row, given: dict[str, Any], model: str) -> str | None:
    """Under what name the preset ships the weights of the row's recipe; None where it ships none."""
    from varbench import rows
    from varbench.data.given import image_set
    from varbench.plan import presets
    from varbench.train.recipes import weights_ahead
    from varbench.train.shipped import shipped_with

    if row.schedule is None or "weights" in given:
        return None
    if (shipped := shipped_with(model, seed=presets.SHIPPED_SEED, steps=None)) is None:
        return None
    files = presets.shipped_files(model, row.policies.backbones)
    data = image_set(None, model=model, side=row.model.image_side)
    found = weights_ahead(
        rows.without_transforms(row), vae=files.pop("vae"), pretrained=files, data=data, budget=shipped.budget,
        shipped=shipped,
    )  # fmt: skip
    return None if found is None or found.record is None or found.origin != "shipped" else str(found.record["row"])


def _labels(text: str | None, classes: int) -> list[int]:
    if text is None:
        return [index * classes // 8 for index in range(8)]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--labels is {text!r}; give class numbers by comma, 0 to {classes - 1}") from None


def open_pipeline(
    given: dict[str, Any], *, heads: int | None, recipe: str | None = None
) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline, and how its images are drawn."""
    from varbench.model.bundle import recipe_in
    from varbench.plan.presets import DEFAULT, shipped_files
    from varbench.run.defaults import companions, filled_in

    files = given.get("weights", "random") != "random"
    if files and "vae" not in given and recipe_in(given["weights"]) is None:
        raise UserError("--weights is a checkpoint, so give the tokenizer's too: --vae FILE")
    for option, value in (("vae", given.get("vae")), ("heads", heads)):
        if value is not None and not files:
            raise UserError(f"--{option} belongs to a checkpoint; give it with --weights FILE")
    model = given.get("model", "sizes of the files" if files else DEFAULT)
    if "weights" not in given and not shipped_files(model):
        raise UserError(f"{model} ships no weights; give --weights FILE with --vae FILE, or --weights random")
    chosen = filled_in({**given, "model": model})
    common = {
        "companions": companions(chosen["companion"]),
        **{name: chosen[name] for name in ("device", "dtype", "seed")},
    }
    from varbench.engine.loading import load_pipeline

    if files:
        pipe = load_pipeline(given.get("model"), vae=given.get("vae"), var=given["weights"], num_heads=heads, **common)
    else:
        pipe = load_pipeline(model, random="weights" in given, recipe=recipe, **common)
    if "top_k" not in given:
        chosen["top_k"] = min(chosen["top_k"], pipe.model.tokenizer.vocabulary)
    return pipe, {name: chosen[name] for name in ("seed", "cfg", "top_k", "top_p")}


def _write_grid(lines: list[Any], path: Path) -> None:
    """A line of images for each row, one pixel between them, in a file that appears when it is whole."""
    import torch
    from PIL import Image
    from torch.nn.functional import pad

    from varbench.base.whole_files import whole_file
    from varbench.engine.pixels import to_uint8

    padded = [torch.cat(list(pad(images.float().cpu(), (0, 1, 0, 1), value=1.0)), dim=-1) for images in lines]
    sheet = to_uint8(torch.cat(padded, dim=-2).unsqueeze(0))[0].transpose(1, 2, 0)
    with whole_file(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")
