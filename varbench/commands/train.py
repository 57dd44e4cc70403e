"""`varbench train`: the tokenizer, the base models, the networks that score, or the recipe of a row."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench.base.display import Display, shown
from varbench.commands import add_config
from varbench.errors import CheckpointError, UserError
from varbench.plan import presets

if TYPE_CHECKING:
    from varbench.data.image_set import ImageSet
    from varbench.rows.grammar import Row
    from varbench.train.ranks import Ranks
    from varbench.train.recipes import RecipeWeights
    from varbench.train.trainer import Budget
    from varbench.train.training_forecast import StageWork

PARTS = ("tokenizer", "base", "narrow", "features", "judge")
HELP = "train a preset's parts, or the recipe of a row"
COMPUTES = True


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments
    from varbench.train.training_options import OWN, SHARED, TrainingOptions

    parser = subparsers.add_parser(
        "train",
        help=HELP,
        description="Trains one of tokenizer, base, narrow (the companion of methods that run two), features, judge; or a "
        "row's recipe. Killed and started again with the same command, it goes on "
        "where it was. Several processes share the work under torchrun.",
    )
    parser.add_argument("what", metavar="WHAT", nargs="?", help=f"{', '.join(PARTS)}, or a row whose recipe trains")
    add_arguments(
        parser, *SHARED, *OWN,
        kind=TrainingOptions,
        model="model preset; default: tiny",
        weights="transformer to start from; default: the shipped one (recipes), or new values (base, narrow)",
        dtype="float32 or bfloat16; default: bfloat16",
        batch="images a step; default: what the shipped weights had",
        seed="seed of data order and draws; default: 0",
        steps="optimiser steps; default: what the shipped weights had",
        data="class folders, or the four idx files of a set like MNIST; all training images are used; default: the preset's own data",
        out="file for the weights; of a recipe, whose weights are kept in the cache, a folder for a copy with its record",
    )  # fmt: skip
    add_config(parser, " and `what`, at its top or under [train], and [stages.NAME] for a stage of a recipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.base.devices import use_device
    from varbench.base.termination import terminated_as_interrupted
    from varbench.record.option_forms import given_in
    from varbench.run.defaults import filled_in
    from varbench.train.ranks import among_others, own_device, place_among
    from varbench.train.training_options import OWN, SHARED, TrainingOptions, configured

    of_file, by_stage = configured(args.config) if args.config else ({}, {})
    given = {"model": presets.DEFAULT, **of_file, **given_in(args, "what", *SHARED, *OWN, kind=TrainingOptions)}
    if "what" not in given:
        raise UserError(f"say what is trained: one of {', '.join(PARTS)}, or a row whose recipe trains")
    suits = filled_in(given, kind=TrainingOptions)
    use_device(suits["device"])
    vars(args).update(given, device=own_device(suits["device"]), seed=suits["seed"], by_stage=by_stage)
    args.tensorboard = args.tensorboard and Path(args.tensorboard)
    if args.weights == "random":
        raise UserError("--weights random: give a checkpoint to start from, or leave it away for what suits WHAT")
    if args.dtype == "float16":
        raise UserError("--dtype float16: losses are not scaled, so give float32 or bfloat16")
    _check(args)
    data = _data(args, side=presets.preset(args.model).spec.image_side)
    verb = {
        "features": _network,
        "judge": _network,
        "tokenizer": _tokenizer,
        "base": _transformer,
        "narrow": _transformer,
    }
    try:
        with among_others(), terminated_as_interrupted():
            return verb.get(args.what, _recipe)(args, data)
    except KeyboardInterrupt:
        if args.what not in ("features", "judge"):  # they take minutes, and begin again
            command = _command() if place_among()[1] == 1 else "the same command"
            print(f"go on from here with: {command}", file=sys.stderr)
        raise


def _check(args: argparse.Namespace) -> None:
    """Refuses values that no training can use, before anything is read or made."""
    from varbench.train.training_options import WITHOUT_EFFECT

    if args.tokens is not None and (args.data is not None or args.what in ("tokenizer", "features", "judge")):
        raise UserError(
            "--tokens stands for the images of a transformer's training: leave --data out, or leave it out itself"
        )
    for option in WITHOUT_EFFECT.get(args.what, ()):
        if getattr(args, option) is not None:
            flag = option.replace("_", "-")
            raise UserError(f"--{flag} has no effect on the training of {args.what}; leave it out")
    if args.by_stage and args.what in PARTS:
        raise UserError(f"{args.config}: the training of {args.what} has no stages; leave [stages] out")


def _data(args: argparse.Namespace, *, side: int) -> ImageSet:
    if args.tokens is not None:
        from varbench.train.token_folder import open_tokens

        return open_tokens(args.tokens)
    from varbench.data.given import image_set

    return image_set(args.data, model=args.model, side=side)


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out) if args.out else Path(f"{args.model}-{args.what}.safetensors")


def _command() -> str:
    return shlex.join(["varbench", *sys.argv[1:]])


def _given(args: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Options that were given, under the names that a budget has for them."""
    return {field: getattr(args, name) for name, field in names.items() if getattr(args, name) is not None}


def _network(args: argparse.Namespace, data: ImageSet) -> int:
    from varbench.base.whole_files import whole_file
    from varbench.quality.train_networks import train_classifier
    from varbench.train.progress import TRAINING, followed

    steps = 3000 if args.steps is None else args.steps
    with (
        shown({TRAINING: [steps]}) as display,
        followed(display, TRAINING, args.what, steps=steps, events=args.tensorboard) as progress,
    ):
        trained = train_classifier(
            args.what,
            data=data,
            steps=steps,
            seed=args.seed,
            device=args.device,
            progress=lambda step, _, figures: progress(step, figures),
        )
    trained.record["command"] = _command()
    with whole_file(_out(args)) as file:
        file.write(trained.file_bytes())
    print(f"{_out(args)}  held-out accuracy {trained.record['held_out_accuracy']:.4f}")
    return 0


def _tokenizer(args: argparse.Namespace, data: ImageSet) -> int:
    from varbench.train.budgets import on_all_of
    from varbench.train.export import bf16_, export
    from varbench.train.progress import TRAINING, followed
    from varbench.train.states import Checkpoints
    from varbench.train.train_tokenizer import TokenizerBudget, held_out_figures, train_tokenizer

    spec = presets.preset(args.model).spec
    given = _given(args, steps="steps", rate="peak_rate", batch="batch")
    budget = on_all_of(data, TokenizerBudget(seed=args.seed, **given))
    out = _out(args)
    state = out.with_suffix(".state")
    told = {"steps": budget.steps, "batch": budget.batch, "events": args.tensorboard}
    with shown({TRAINING: [budget.steps]}) as display, followed(display, TRAINING, "tokenizer", **told) as progress:
        module, record = train_tokenizer(
            spec, data=data, budget=budget, checkpoints=Checkpoints(state), progress=progress, device=args.device
        )
    figures = held_out_figures(bf16_(module), data=data, device=args.device)
    export(module, out, spec=spec, record={**record, **figures, "command": _command()})
    state.unlink(missing_ok=True)
    print(f"{out}  PSNR {figures['psnr']:.2f} dB on held-out images, {figures['codes_used']:.0f} codes in use")
    return 0


def _transformer(args: argparse.Namespace, data: ImageSet) -> int:
    import torch

    from varbench.base.hashing import file_hash
    from varbench.model.checkpoints import build_tokenizer, load_tokenizer, load_transformer
    from varbench.model.state_files import read_record
    from varbench.model.transformer import Transformer, initialise_
    from varbench.train.budgets import BASE, NARROW, on_all_of
    from varbench.train.export import export
    from varbench.train.progress import TOKENS, TRAINING, followed
    from varbench.train.recipes import full_curriculum
    from varbench.train.state_parts import delete
    from varbench.train.states import Checkpoints
    from varbench.train.tokens import tokens_of
    from varbench.train.trainer import train
    from varbench.train.training_forecast import full_model_stage

    main = presets.preset(args.model).spec
    spec, budget = (main, BASE) if args.what == "base" else (main.narrower(), NARROW)
    budget = _budget(args, on_all_of(data, budget))
    ranks = _ranks(args, budget.batch)
    _foretell(args.what, lambda **how: [full_model_stage(spec, **how)], args=args, budget=budget, ranks=ranks)
    vae = _vae(args)
    _, tensors = load_tokenizer(vae)
    tokenizer = build_tokenizer(spec, tensors, vae).to(args.device)
    out = _out(args)
    earlier: dict[str, Any] = {}
    if args.weights is None:
        transformer = initialise_(Transformer(spec), torch.Generator().manual_seed(args.seed)).to(args.device)
    else:
        transformer = load_transformer(args.weights, spec.tokenizer).to(args.device)
        if replace(transformer.spec, name=spec.name) != spec:
            raise CheckpointError(f"{args.weights} holds {transformer.spec}, and {args.what} is {spec}.")
        transformer.spec = spec
        earlier = {"from": file_hash(args.weights), "earlier": read_record(args.weights)}
    origin = {
        **earlier,
        "kind": args.what,
        "data": data.fingerprint,
        "tokenizer": file_hash(vae),
        "command": _command(),
        "processes": ranks.count,
    }

    def keep(step: int) -> None:
        export(transformer, out, spec=spec, record={**origin, "unfinished": f"{step} of {budget.steps} steps"})

    kinds = {TOKENS: [budget.images_seen], TRAINING: [budget.steps]}
    with shown(kinds, quiet=ranks.rank > 0) as display:
        indices = data.training[: budget.images_seen]
        tokens = tokens_of(data, tokenizer, model=spec, indices=indices, display=display)
        told = {"steps": budget.steps, "batch": budget.batch, "events": args.tensorboard if ranks.rank == 0 else None}
        with followed(display, TRAINING, args.what, **told) as progress:
            record = train(
                transformer,
                tokenizer=tokenizer,
                tokens=tokens,
                curriculum=full_curriculum(spec, name=args.what),
                budget=budget,
                checkpoints=Checkpoints(out.with_suffix(".state")),
                progress=progress,
                on_checkpoint=keep,
                ranks=ranks,
                identity={"from": earlier.get("from")},
            )
    if ranks.rank == 0:
        export(transformer, out, spec=spec, record={**origin, **record})
        delete(out.with_suffix(".state"))
        print(f"{out}  last loss {record['losses']['full'][-1][1]:.3f} after {budget.steps} steps")
    ranks.close()
    return 0


def _recipe(args: argparse.Namespace, data: ImageSet) -> int:
    from varbench import rows
    from varbench.policies import MAIN
    from varbench.run.defaults import companions
    from varbench.train.budgets import on_all_of, recipe_budget
    from varbench.train.generators import taught, trained_generator
    from varbench.train.recipes import in_one_display, recipe_parts, recipe_weights
    from varbench.train.shipped import put
    from varbench.train.training_forecast import stages_of

    found = rows.expand(args.what, presets.preset(args.model).spec)
    by_recipe = {(row.recipe_plugin, row.recipe): row for row in found if row.schedule is not None}
    generators = [row for row in found if trained_generator(row)]
    if args.by_stage and not by_recipe:
        raise UserError(f"{args.config}: {args.what} is trained without stages; leave [stages] out")
    start = args.weights or presets.shipped_files(args.model).get(MAIN)
    main = None if start is None else Path(start)
    if main is None and any(map(taught, generators)):
        raise UserError(f"{args.model} ships no weights to learn from. Give them by --weights and --vae.")
    if generators and not (by_recipe or any(map(taught, generators))) and args.weights is not None:
        raise UserError(
            f"--weights has no effect on the training of {args.what}, which begins from nothing; leave it out"
        )
    if generators:
        _generators(generators, args=args, data=data, main=main)
    if generators and not by_recipe:
        return 0
    if not by_recipe:
        raise UserError(f"{args.what} trains nothing: its recipe uses the pretrained weights as they are.")
    further = {part: spec for row in found for part, spec in row.policies.backbones.items()}
    files = presets.shipped_files(args.model, further)
    pretrained = {name: path for name, path in files.items() if name != "vae"}
    if args.weights is not None:
        pretrained[MAIN] = Path(args.weights)
    for name, given in companions(args.companion or ()).items():
        if name not in further:
            beside = f"only {' and '.join(further)} runs" if further else "no other model runs"
            raise UserError(f"--companion {name}={given}: {beside} beside the main one of {args.what}")
        pretrained[name] = Path(given)
    if MAIN not in pretrained:
        raise UserError(f"{args.model} ships no weights to start from. Give them by --weights and --vae.")
    steps = args.steps or presets.preset(args.model).shipped_steps or presets.SHORT_STEPS
    budget = _budget(args, on_all_of(data, recipe_budget(steps)))
    ranks = _ranks(args, budget.batch)

    def weights(row: Row, display: Display) -> RecipeWeights:
        return recipe_weights(
            row,
            ranks=ranks,
            vae=_vae(args),
            pretrained=pretrained,
            data=data,
            budget=budget,
            device=args.device,
            events=args.tensorboard,
            by_stage=args.by_stage,
            begins=partial(_foretell, row.recipe_name, partial(stages_of, row), args=args, budget=budget, ranks=ranks),
            display=display,
        )

    parts = partial(recipe_parts, budget=budget, by_stage=args.by_stage)
    trained = in_one_display(by_recipe.values(), weights, parts=parts, quiet=ranks.rank > 0)
    for row, done in trained if ranks.rank == 0 else ():
        if args.out is not None and done.record is not None:
            own = {name: path for name, path in done.files.items() if path != pretrained[name]}
            print(f"{row.recipe_name}  {put(Path(args.out), row.recipe_name, files=own, record=done.record)}")
            continue
        for name, path in done.files.items():
            print(f"{row.recipe_name}  {name}  {path}{'  (cached)' if done.origin == 'cache' else ''}")
    ranks.close()
    return 0


def _generators(generators: Sequence[Row], *, args: argparse.Namespace, data: ImageSet, main: Path | None) -> None:
    from varbench.train.budgets import GENERATOR
    from varbench.train.generators import generator_parts, generator_weights
    from varbench.train.recipes import in_one_display
    from varbench.train.shipped import put

    budget = _budget(args, GENERATOR)

    def weights(row: Row, display: Display) -> RecipeWeights:
        given = {"device": args.device, "events": args.tensorboard, "display": display}
        return generator_weights(row, vae=_vae(args), data=data, budget=budget, main=main, **given)

    printed: set[Path] = set()
    for row, done in in_one_display(generators, weights, parts=lambda row: generator_parts(budget)):
        for path in sorted(set(done.files.values()) - printed):  # points of one training share it
            printed.add(path)
            if args.out is not None and done.record is not None:
                plugin = row.plugins[0].name
                print(f"{plugin}  {put(Path(args.out), plugin, files=done.files, record=done.record)}")
                continue
            print(f"{row.name}  {path}{'  (cached)' if done.origin == 'cache' else ''}")


def _ranks(args: argparse.Namespace, batch: int) -> Ranks:
    from varbench.train.ranks import join_ranks

    ranks = join_ranks(device=args.device, parts=args.parts or 1, recompute=bool(args.recompute))
    ranks.check(batch)
    return ranks


def _foretell(
    name: str, stages: Callable[..., Iterable[StageWork]], *, args: argparse.Namespace, budget: Budget, ranks: Ranks
) -> None:
    """Says what a training will take, once and before it begins."""
    import torch

    from varbench.measure.environment import cores
    from varbench.run.prepare import hardware_like
    from varbench.train.training_forecast import in_a_line

    if ranks.rank > 0:
        return
    kind, device = args.device.partition(":")[0], None
    if kind != "cpu" or ranks.count == 1:  # how many processes share a processor is not known
        device = hardware_like("cpu" if kind == "cpu" else torch.cuda.get_device_name(args.device), cores())
    found = [*stages(steps=budget.steps, dtype=budget.dtype, device=kind, recompute=ranks.recompute)]
    line = in_a_line(found, batch=budget.batch, gpus=ranks.count, parts=ranks.parts, dtype=budget.dtype, device=device)
    print(f"{name}: {line}", file=sys.stderr)


def _budget(args: argparse.Namespace, default: Any) -> Any:
    from varbench.train.training_options import OPTIMISER

    given = _given(args, steps="steps", batch="batch", dtype="dtype", **OPTIMISER)
    return replace(default, seed=args.seed, **given)


def _vae(args: argparse.Namespace) -> Path:
    if args.vae is not None:
        return Path(args.vae)
    shipped = presets.shipped_files(args.model)
    if not shipped:
        raise UserError(f"{args.model} ships no tokenizer. Train one (varbench train tokenizer) and give it by --vae.")
    return shipped["vae"]
