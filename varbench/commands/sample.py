"""`varbench sample`: images of one or more rows, same classes and noise, in one PNG."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench.commands import usable_plugins
from varbench.errors import UserError

if TYPE_CHECKING:
    from varbench.engine.pipeline import Pipeline

NOTHING_SELECTED = 4


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="images of one or more rows, same classes and noise, in one PNG",
        description="Draws images with the weights that are given, or the preset's own, and puts them into one PNG: a line for "
        "each row, a column for each image. Weights of a training recipe are not looked for.",
        epilog="examples:\n"
        "  varbench sample full_var,variant@d8,variant@d2\n"
        "  varbench sample variant@d16 --model var-d30 --weights var_d30.pth --vae vae_ch160v4096z32.pth --labels 207,88\n"
        "  varbench sample code@n8 --model var-d30 --weights random",
    )
    parser.add_argument(
        "methods", metavar="ROWS", nargs="?", default="full_var", help="rows by comma; default: full_var"
    )
    parser.add_argument(
        "--model", metavar="PRESET", help="model preset; default: the checkpoint's own sizes, else tiny"
    )
    parser.add_argument(
        "--weights", metavar="PATH", help="transformer checkpoint, or random; default: what the preset ships"
    )
    parser.add_argument("--vae", metavar="PATH", help="tokenizer checkpoint, with --weights PATH")
    parser.add_argument(
        "--companion", action="append", default=[], metavar="NAME=PATH",
        help="checkpoint of a further model, as in refiner=var_d16.pth for code",
    )  # fmt: skip
    parser.add_argument(
        "--heads", type=int, metavar="N", help="heads, where the checkpoint does not tell (plain attention)"
    )
    parser.add_argument(
        "--labels", metavar="CLASSES", help="class numbers by comma; default: 8 spread over all classes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default: 0")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale; default: 1.5")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest codes; 0, the default, is off")
    parser.add_argument("--top-p", type=float, default=0.0, help="draw within this probability; 0, the default, is off")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="compute type; default: float32")
    parser.add_argument("--out", type=Path, default=Path("sample.png"), metavar="FILE", help="default: sample.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench import rows

    if args.out.exists():
        raise UserError(f"{args.out} is there already; give another name with --out, or remove it")
    manager = usable_plugins(args)
    pipe = _pipeline(args)
    asked = rows.expand(args.methods, pipe.model, manager=manager)
    if not asked:
        print(f"varbench sample: error: {args.methods!r} names no row; give e.g. variant@d8", file=sys.stderr)
        return NOTHING_SELECTED
    labels = _labels(args.labels, pipe.model.classes)
    lines = []
    for row in asked:
        start = time.perf_counter()
        output = pipe.generate(labels, seed=args.seed, cfg=args.cfg, top_k=args.top_k, top_p=args.top_p, method=row)
        lines.append(output.images)
        print(f"{row.name}: {len(labels)} images in {time.perf_counter() - start:.2f} s", file=sys.stderr)
        if row.schedule is not None:
            print(f"  with the model's own weights, not those of recipe {row.recipe!r}", file=sys.stderr)
    _write_grid(lines, args.out)
    print(args.out)
    return 0


def _labels(text: str | None, classes: int) -> list[int]:
    if text is None:
        return [index * classes // 8 for index in range(8)]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--labels is {text!r}; give class numbers by comma, 0 to {classes - 1}") from None


def _pipeline(args: argparse.Namespace) -> Pipeline:
    from varbench.plan.presets import DEFAULT, shipped_files

    companions = dict(_companion(given) for given in args.companion)
    common = {"companions": companions, "device": args.device, "dtype": args.dtype, "seed": args.seed}
    if args.weights not in (None, "random"):
        if args.vae is None:
            raise UserError("--weights is a checkpoint, so give the tokenizer's too: --vae PATH")
        from varbench.engine.pipeline import load_pipeline

        return load_pipeline(args.model, vae=args.vae, var=args.weights, num_heads=args.heads, **common)
    for option in ("vae", "heads"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} belongs to a checkpoint; give it with --weights PATH")
    name = args.model or DEFAULT
    if args.weights is None and not shipped_files(name):
        raise UserError(f"{name} ships no weights; give --weights PATH with --vae PATH, or --weights random")
    from varbench.engine.pipeline import load_pipeline

    return load_pipeline(name, random=args.weights == "random", **common)


def _companion(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--companion is {text!r}; give NAME=PATH, as in refiner=var_d16.pth")
    return name, path


def _write_grid(lines: list[Any], path: Path) -> None:
    """A line of images for each row, one pixel between them, in a file that appears when it is whole."""
    import torch
    from PIL import Image
    from torch.nn.functional import pad

    from varbench.base.whole_files import whole_file
    from varbench.quality.images import to_uint8

    padded = [torch.cat(list(pad(images.float().cpu(), (0, 1, 0, 1), value=1.0)), dim=-1) for images in lines]
    sheet = to_uint8(torch.cat(padded, dim=-2).unsqueeze(0))[0].transpose(1, 2, 0)
    with whole_file(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")
