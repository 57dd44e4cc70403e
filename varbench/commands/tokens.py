"""`varbench tokens`: a data set's images as tokens in a folder, made once for many trainings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varbench.errors import UserError

SHARED = ("model", "vae", "data", "device", "seed")


HELP = "a data set's images as tokens in a folder, made once"
COMPUTES = True


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments

    parser = subparsers.add_parser(
        "tokens",
        help=HELP,
        description="Encodes the training images, and a few held-out ones, into shards that `varbench train --tokens DIR` reads. "
        "Killed and started again with the same command, it goes on where it was. Under torchrun several processes share the "
        "shards.",
        epilog="examples:\n"
        "  varbench tokens --model var-d30 --vae vae_ch160v4096z32.pth --data IMAGENET/train --crops 4 --out tokens/",
    )
    add_arguments(
        parser, *SHARED, model="model preset; default: tiny", vae="the tokenizer; default: the shipped one",
        data="class folders, or four idx files; default: the preset's own data", seed="seed of the crops; default: 0",
    )  # fmt: skip
    parser.add_argument(
        "--crops", type=int, default=1, metavar="N",
        help="views of each image: its middle square, and others drawn from it an eighth larger; default: 1",
    )  # fmt: skip
    parser.add_argument("--images", type=int, metavar="N", help="only the first N training images; default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the shards go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.base.devices import use_device
    from varbench.base.display import shown
    from varbench.data.given import image_set
    from varbench.model.checkpoints import build_tokenizer, load_tokenizer
    from varbench.plan import presets
    from varbench.record.option_forms import given_in
    from varbench.run.defaults import filled_in
    from varbench.train.progress import TOKENS, followed
    from varbench.train.ranks import own_device, place_among
    from varbench.train.token_folder import write_shards

    given = {"model": presets.DEFAULT, **given_in(args, *SHARED)}
    spec = presets.preset(given["model"]).spec
    chosen = filled_in(given)
    use_device(chosen["device"])
    if args.crops < 1 or (args.images is not None and args.images < 1):
        raise UserError("--crops and --images are counts; give 1 or more")
    shipped = presets.shipped_files(spec.name)
    vae = given.get("vae") or shipped.get("vae")
    if vae is None:
        raise UserError(f"{spec.name} ships no tokenizer; give it by --vae")
    data = image_set(given.get("data"), model=given["model"], side=spec.image_side)
    wanted = len(data.training) if args.images is None else min(args.images, len(data.training))
    if "data" not in given and args.images is None:
        raise UserError(
            f"{data.name} has {wanted:,} training images; say how many by --images, or give a folder by --data"
        )
    tokenizer = build_tokenizer(spec, load_tokenizer(vae)[1], Path(vae)).to(own_device(chosen["device"]))
    rank, count = place_among()
    steps = wanted // count or 1
    with (
        shown({TOKENS: [steps]}, quiet=rank > 0) as display,
        followed(display, TOKENS, data.name, steps=steps) as progress,
    ):
        write_shards(
            args.out, data, tokenizer, model=spec, images=args.images, crops=args.crops, seed=chosen["seed"], rank=rank, count=count,
            progress=lambda images: progress(min(images, steps), {}),
        )  # fmt: skip
    if rank == 0:
        print(
            f"{args.out}  {wanted:,} images of {len(data.classes)} classes in {args.crops} crop{'s' * (args.crops > 1)}"
        )
    return 0
