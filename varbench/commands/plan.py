"""`varbench plan`: what a row computes and keeps, and how fast it should be, with no weights and no GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from varbench.commands import add_json, usable_plugins
from varbench.errors import PlanError, UserError

if TYPE_CHECKING:
    from varbench.plan.cost import PlanWork, Prediction
    from varbench.plan.hardware import Hardware
    from varbench.plan.steps import Accounting, Plan
    from varbench.policies import Published, Work
    from varbench.rows.grammar import Row
    from varbench.rows.manager import PluginManager
    from varbench.spec import ModelSpec

MIB = 2**20
SOME_FAILED, NOTHING_SELECTED, ALL_FAILED = 3, 4, 5
SHARED = ("model", "batch", "dtype", "all_settings", "steps", "seed")
OF_TRAINING = ("parts", "recompute")


HELP = "what a row computes and keeps, and how fast it should be; no weights, no GPU"


HERE = "here"
"""What `varbench env --calibrate` measured of this machine."""


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments
    from varbench.train.training_options import TrainingOptions

    parser = subparsers.add_parser(
        "plan",
        help=HELP,
        description="Compiles rows and counts their FLOPs and bytes, step by step, beside the full model's and beside "
        "published figures. Predicted seconds are a roofline: a bound where no efficiency was measured.",
        epilog="examples:\n"
        "  varbench plan variant@d8 --model var-d30\n"
        "  varbench plan variant,code --model var-d30 --hardware H100-SXM,L20\n"
        "  varbench plan variant@d2:bridge=7 --model var-d30 --accounting upstream\n"
        "  varbench plan all --model var-d30 --hardware L20,H100-SXM\n"
        "  varbench plan variant --training --model var-d30 --hardware H100-SXM --gpus 8 --batch 1024 --parts 8",
    )
    parser.add_argument(
        "method",
        metavar="METHOD",
        help="rows, by comma; a method without a point stands for its default ones, and `all` for every method",
    )
    add_arguments(
        parser, *SHARED,
        model="model preset; default: tiny", batch="images a call, or a step; default: 64",
        dtype="compute type; default: bfloat16", steps="optimiser steps of --training; default: 2,000",
        seed="seed of what the schedule draws; default: 0",
    )  # fmt: skip
    parser.add_argument(
        "--hardware",
        metavar="NAMES",
        help="names by comma, a .toml file, or `here`, as `varbench env --calibrate` measured it; default: L20, as the papers, or "
        "for tiny and fashion a CPU",
    )
    parser.add_argument(
        "--accounting", choices=("lossless", "upstream"), help="upstream counts and stores as the official code does"
    )
    training = parser.add_argument_group("what training a recipe takes")
    training.add_argument("--training", action="store_true", help="memory of a process and time, instead of generation")
    training.add_argument("--gpus", type=int, default=1, metavar="N", help="processes that share a batch; default: 1")
    add_arguments(training, *OF_TRAINING, kind=TrainingOptions)
    add_json(parser, "JSON, with the whole plan of each row")
    parser.set_defaults(run=run)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A row with its plan and what that costs."""

    name: str
    row: Row
    plan: Plan
    works: Mapping[str, PlanWork]
    """By kind of device."""
    predictions: tuple[Prediction, ...]

    @property
    def work(self) -> PlanWork:
        """For the first device."""
        return next(iter(self.works.values()))


def run(args: argparse.Namespace) -> int:
    from varbench import rows
    from varbench.plan.presets import DEFAULT, preset
    from varbench.record.option_forms import given_in
    from varbench.train.training_options import TrainingOptions

    asked_for = given_in(args, *SHARED, *OF_TRAINING, kind=TrainingOptions)
    given = {"model": DEFAULT, "batch": 64, "dtype": "bfloat16", **asked_for}
    batch, dtype = given["batch"], given["dtype"]
    manager = usable_plugins(args)
    model = preset(given["model"])
    devices = _devices(args.hardware or ("cpu-2-cores" if model.assets else "L20"))
    asked = rows.attempt(args.method, model.spec, all_settings=given.get("all_settings", False), manager=manager)
    if not asked.rows and not asked.refused:
        print(f"varbench plan: error: {args.method!r} names no row; give NAME or NAME@POINT", file=sys.stderr)
        return NOTHING_SELECTED
    if args.training:
        return _training(args, given, asked.rows, devices)
    settings = {"model": model.spec, "batch": batch, "dtype": dtype, "devices": devices}
    full = rows.resolve(rows.FULL, model.spec, manager=manager)
    denominators = [count(full, accounting=accounting, **settings) for accounting in rows.ACCOUNTINGS]
    found: list[Counted] = []
    beside: list[str] = []
    failed = {refused.name: refused.reason for refused in asked.refused}
    works: dict[str, Work] = {}
    for row in asked.rows:
        try:
            if (owned := row.policies.generator) is not None:
                works[row.name] = owned.ask(owned.policy.work, batch)
                beside += _printed(row, row.name, manager)
                continue
            counted = count(row, accounting=args.accounting or row.accounting, **settings)
            beside += _beside(counted, denominators, manager=manager, **settings)
            found.append(counted)
        except PlanError as error:
            failed[row.name] = str(error)
    for name, reason in failed.items():
        print(f"varbench plan: {name} failed: {reason}", file=sys.stderr)
    code = ALL_FAILED if not (found or works) else SOME_FAILED if failed else 0
    if args.json:
        counts = [_as_json(counted, manager) for counted in (*denominators, *_others(found, denominators))]
        counts += [{"row": name, "stated": dataclasses.asdict(work)} for name, work in works.items()]
        print(json.dumps([*counts, *({"row": name, "failed": reason} for name, reason in failed.items())], indent=1))
        return code
    if len(found) == 1:
        print(found[0].plan, _steps_table(found[0]), sep="\n\n", end="\n\n")
    if found:
        print(_summary(denominators, found, batch=batch, dtype=dtype))
        for counted in found:
            if counted.plan.varies:
                print(_by_content(counted, denominators[0], batch=batch, dtype=dtype))
    for line in _misfits(found, devices=devices):
        print(line)
    if works:
        print("\n" * bool(found) + _stated(denominators[0], works, batch=batch))
    if beside:
        print("\npublished figures beside", *beside, sep="\n")
    return code


def _training(
    args: argparse.Namespace, given: Mapping[str, Any], asked: Sequence[Row], devices: Sequence[Hardware]
) -> int:
    from varbench.train.training_forecast import as_text, stages_of

    batch, dtype, parts = given["batch"], given["dtype"], given.get("parts", 1)
    if args.gpus < 1 or batch % (args.gpus * parts):
        raise UserError(
            f"a batch of {batch} has no {args.gpus} x {parts} equal parts; change --batch, --gpus or --parts"
        )
    recipes = {row.recipe_name: row for row in asked if row.schedule is not None}
    found = {
        name: tuple(
            stages_of(
                row, steps=given.get("steps") or 2_000, dtype=dtype, device=devices[0].device, seed=given.get("seed", 0),
                recompute=given.get("recompute", False),
            )
        )
        for name, row in recipes.items()
    }  # fmt: skip
    if not found:
        print(f"varbench plan: error: {args.method!r} names no row whose recipe trains", file=sys.stderr)
        return NOTHING_SELECTED
    if args.json:
        stages = [{"recipe": name, **dataclasses.asdict(stage)} for name, some in found.items() for stage in some]
        print(json.dumps(stages, indent=1))
    else:
        print(as_text(found, devices=devices, batch=batch, gpus=args.gpus, parts=parts, dtype=dtype))
    return 0


def _devices(text: str) -> tuple[Hardware, ...]:
    return tuple(map(_hardware, text.split(",")))


def _hardware(name: str) -> Hardware:
    from varbench.measure.kept_rates import all_kept
    from varbench.plan import hardware

    if name != HERE:
        return hardware.from_file(name) if name.endswith(".toml") else hardware.hardware(name)
    found = all_kept()
    if len(found) != 1:
        names = ", ".join(one.name for one in found)
        why = (
            f"several devices of this machine were measured: {names}; give one's file"
            if found
            else "nothing was measured"
        )
        raise UserError(f"--hardware {HERE}: {why}; see varbench env --calibrate")
    return found[0]


def count(
    row: Row, *, accounting: Accounting, model: ModelSpec, batch: int, dtype: str, devices: Sequence[Hardware]
) -> Counted:
    from varbench.plan.compiler import compile_plan
    from varbench.plan.cost import predict, work

    plan = compile_plan(model, row.policies, accounting=accounting)
    kinds = dict.fromkeys(one.device for one in devices)
    works = {kind: work(plan, batch=batch, dtype=dtype, device=kind) for kind in kinds}
    suffix = "" if accounting == row.accounting else f":accounting={accounting}"
    return Counted(
        name=row.name + suffix,
        row=row,
        plan=plan,
        works=works,
        predictions=tuple(predict(works[one.device], one) for one in devices),
    )


def _others(found: Sequence[Counted], denominators: Sequence[Counted]) -> list[Counted]:
    shown = {counted.name for counted in denominators}
    return [counted for counted in found if counted.name not in shown]


def _steps_table(counted: Counted) -> str:
    from tabulate import tabulate

    work, plan = counted.work, counted.plan
    headers = ["scale", "GFLOPs", "moved MiB", "state peak MiB", "state after MiB"]
    headers += [f"ms on {prediction.hardware}" for prediction in counted.predictions]
    lines: list[list[Any]] = [
        [
            f"{step.scale + 1} ({plan.model.sides[step.scale]}x{plan.model.sides[step.scale]})",
            step.flops / 1e9,
            step.bytes_moved / MIB,
            step.state_peak / MIB,
            step.state_after / MIB,
            *(prediction.steps[index] * 1e3 for prediction in counted.predictions),
        ]
        for index, step in enumerate(work.steps)
    ]
    decoder = [prediction.decoder * 1e3 for prediction in counted.predictions]
    lines.append(["decoder", work.decoder_flops / 1e9, work.decoder_bytes / MIB, None, None, *decoder])
    return str(tabulate(lines, headers=headers, floatfmt=",.1f", missingval="-", tablefmt="simple"))


def _summary(denominators: Sequence[Counted], found: Sequence[Counted], *, batch: int, dtype: str) -> str:
    """All rows beside both denominators, without the decoder."""
    from tabulate import tabulate

    lossless, upstream = denominators
    headers = ["row", "TFLOPs", "less work", "state peak MiB", "end MiB", "of lossless", "of upstream", "weights MiB"]
    for device in lossless.predictions:
        headers += [f"s on {device.hardware}", "speedup"]
    lines = []
    for counted in (*denominators, *_others(found, denominators)):
        work = counted.work
        line: list[Any] = [
            counted.name,
            work.transformer_flops / 1e12,
            f"{lossless.work.transformer_flops / work.transformer_flops:.2f}x",
            work.state_peak / MIB,
            work.state_end / MIB,
            f"{work.state_peak / lossless.work.state_peak:.1%}",
            f"{work.state_peak / upstream.work.state_peak:.1%}",
            work.weight_bytes / MIB,
        ]
        for prediction, full in zip(counted.predictions, lossless.predictions, strict=True):
            line += [prediction.transformer, f"{full.transformer / prediction.transformer:.2f}x"]
        lines.append(line)
    formats = ("", ",.3f", "", ",.1f", ",.1f", "", "", ",.0f", *(".3g", "") * len(lossless.predictions))
    model = lossless.plan.model
    bounds = [p.hardware for p in lossless.predictions if p.bound]
    note = f"; a bound on {', '.join(bounds)}, where no efficiency was measured" if bounds else ""
    title = f"{model.name}, batch {batch}, {dtype}, without the decoder{note}"
    table = tabulate(lines, headers=headers, floatfmt=formats, tablefmt="simple")
    return f"{title}\n{table}"


def _by_content(counted: Counted, lossless: Counted, *, batch: int, dtype: str) -> str:
    """Between what bounds the work of a row is that hangs on content; the table has the most."""
    from varbench.plan.cost import least

    full = lossless.work.transformer_flops
    fewest = least(counted.plan, batch=batch, dtype=dtype).transformer_flops
    bounds = f"{100 * fewest / full:.0f}-{100 * counted.work.transformer_flops / full:.0f} %"
    return f"{counted.name} depends on content: {bounds} of the work; the table has the most"


def _misfits(found: Sequence[Counted], *, devices: Sequence[Hardware]) -> Iterator[str]:
    """Rows that would not fit a device, and the largest batch that does."""
    from varbench.measure.largest import misfit_by

    for device in devices:
        for counted in found:
            free, work = round(device.memory_gb * 2**30), counted.works[device.device]
            sentence = misfit_by(work, plan=counted.plan, free=free, device=device.device)
            if sentence is not None:
                yield f"{counted.name} does not fit {device.name}: it {sentence}"


def _published(row: Row, manager: PluginManager) -> tuple[Published, ...]:
    """What was printed of the row's setting; where that is nothing, of the same setting at its default parameters."""
    from varbench import rows

    return row.published or rows.without_parameters(row, manager=manager).published


def _beside(
    counted: Counted, denominators: Sequence[Counted], *, manager: PluginManager, **settings: Any
) -> Iterator[str]:
    from varbench import rows
    from varbench.show.published import Works, by_plan, fits_text

    if not _published(counted.row, manager):
        return
    works = {counted.plan.accounting: counted.work}
    for accounting in set(rows.ACCOUNTINGS) - works.keys():
        works[accounting] = count(counted.row, accounting=accounting, **settings).work
    both = Works(ours=works, full={one.plan.accounting: one.work for one in denominators})
    yield from _printed(
        counted.row,
        counted.name,
        manager,
        lambda line: (
            f"{beside.printed} {fits_text(beside.fits)} ours; {beside.ours}" for beside in by_plan(line.figures, both)
        ),
    )


def _printed(
    row: Row, name: str, manager: PluginManager, verdicts: Callable[[Published], Iterable[str]] = lambda line: ()
) -> Iterator[str]:
    """What others printed of the row, each line with what ours says to it."""
    from varbench.show.published import figures_text, source_text

    published = _published(row, manager)
    for line in published:
        yield f"  {name}: {figures_text(line.figures)} [{line.grade}; {source_text(line)}]"
        yield from (f"    {verdict}" for verdict in verdicts(line))
    if published and row.provenance and row.provenance.note:
        yield f"    our choices: {row.provenance.note}"


def _stated(lossless: Counted, works: Mapping[str, Work], *, batch: int) -> str:
    """Rows that replace the loop, by what they say of themselves; what they keep is known once they are loaded."""
    from tabulate import tabulate

    full = lossless.work.transformer_flops
    lines = [
        (
            name,
            work.flops and work.flops / 1e12,
            work.flops and f"{full / work.flops:.2f}x",
            work.decoder_flops / 1e12,
            work.steps,
            work.parameters and work.parameters / 1e6,
        )
        for name, work in works.items()
    ]
    headers = ["row", "TFLOPs", "less work", "decoder TFLOPs", "steps", "M parameters"]
    table = tabulate(lines, headers=headers, floatfmt=",.3f", intfmt=",", missingval="-", tablefmt="simple")
    return f"rows that replace the loop, as they state it, batch {batch}\n{table}"


def _as_json(counted: Counted, manager: PluginManager) -> dict[str, Any]:
    work = counted.work
    return {
        "row": counted.name,
        "plan": {**counted.plan.to_json(), "digest": counted.plan.digest},
        "work": {
            **dataclasses.asdict(work),
            "transformer_flops": work.transformer_flops,
            "state_peak": work.state_peak,
            "state_end": work.state_end,
        },
        "predictions": [
            {**dataclasses.asdict(prediction), "transformer": prediction.transformer, "total": prediction.total}
            for prediction in counted.predictions
        ],
        "published": [dataclasses.asdict(published) for published in _published(counted.row, manager)],
    }
