"""What users of such models get wrong, each a warning with the command that mends it; what makes a row invalid is in `sanity`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace

from varbench.plan import presets, protocols
from varbench.record import Notice
from varbench.record.option_forms import as_arguments
from varbench.record.options import Options, asked
from varbench.rows import FULL
from varbench.run.findings import Findings
from varbench.run.messages import ReferenceSeen
from varbench.run.prepare import RowInRun, Run

REBUILT = 1.6
"""Reference images change more than a tokenizer's own images by this factor at least: 2.5 for those of `tiny`, 1.2 for what has
come out of its tokenizer."""


def notices(run: Run, row: RowInRun, found: Findings) -> Iterator[Notice]:
    """What is to be known of how a row's images were asked for and scored."""
    options = run.options

    def again(**changes: object) -> str:
        changed = replace(options, **changes)  # type: ignore[arg-type]  # names are those of options
        return shlex.join(as_arguments(changed, row=row.name, study=row.resolved.study))

    if options.protocol is not None and (departed := _departures(options)):
        differ = ", ".join(f"{name} {ours}, there {theirs}" for name, (ours, theirs) in departed.items())
        mended = {name: theirs for name, (_, theirs) in departed.items()}
        yield Notice(text=f"not as {options.protocol} has it: {differ}", next_command=again(**mended))
    if options.protocol is not None and options.other_files:
        yield Notice(
            text=f"files with other hashes than those of {options.protocol} were allowed: the weights section says which ran; "
            "`varbench list protocols` says where the published ones are",
            next_command=shlex.join([
                "varbench", "run", "--protocol", options.protocol, "--model", options.model,
                "--checkpoints", options.checkpoints or "DIR", "--plugins", row.name,
            ]),
        )  # fmt: skip
    if row.name == FULL and run.files is not None and (lacking := lacking_images(options)):
        repeated = as_arguments(with_data(options), row=row.name, study=row.resolved.study)
        yield Notice(text=f"quality is left out: {lacking}", next_command=shlex.join(repeated))
    if not run.is_scored(row.name):
        return
    if row.name == FULL and (trained := another_recipe(run, row)) is not None:
        yield Notice(
            text=f"the full model ran on weights that were trained for {trained}: its scores are not those of the weights that training "
            "began from, nor to be held against printed ones; without --weights it runs on what ships or was published"
        )
    if options.cfg == 0 and row.plan is not None:
        yield Notice(
            text="guidance is off: cfg is 0, and published scores are with it unless they say otherwise",
            next_command=again(cfg=asked(Options)["cfg"].default),
        )
    if rest := options.images % run.model.classes:
        most = max(run.model.classes, options.images - rest)
        yield Notice(
            text=f"labels are not balanced: {options.images:,} images of {run.model.classes:,} classes",
            next_command=again(images=most),
        )
    if found.looks is not None and found.looks.from_bytes:
        yield Notice(
            text="images were bytes already when they were handed over: whether these were rounded or cut off cannot be seen, "
            "and cut off they are half a level darker; let the generator give floats, and measure again",
            next_command=again(),
        )
    scored = found.seen.scored if found.seen else None
    if scored is not None and scored.quality is not None and not any(file.role == "judge" for file in scored.weights):
        yield _unjudged(options)
    if scored is not None and scored.quality is not None and scored.reference is not None:
        yield from _reference(run, scored.quality.scores[0].name, scored.reference, again)


def another_recipe(run: Run, row: RowInRun) -> str | None:
    """What the weights that were given were trained for, where the row runs on them and that is not its own recipe."""
    return None if row.replaces_loop or run.trained_for in own_recipes(row) else run.trained_for


def own_recipes(row: RowInRun) -> set[str]:
    """As a file of trained weights names the row's recipe, whichever of its plugins has it."""
    return {f"{plugin.name}@{row.resolved.recipe}" for plugin in row.resolved.plugins}


def lacking_images(options: Options) -> str | None:
    """What the user has to bring so that a preset that ships can be scored; None where it is there."""
    brought = presets.preset(options.model).data
    if not brought or options.data is not None or options.reference is not None:
        return None
    return f"there are no images to score against: give --data FOLDER, {brought}"


def with_data(options: Options) -> Options:
    """The same with a folder of images, which is to be filled in, and scored where it was not for want of it."""
    usual = asked(Options)["images"].usual(options.model, quick=options.quick)
    return replace(options, data="FOLDER", images=usual if lacking_images(options) else options.images)


def _unjudged(options: Options) -> Notice:
    text = "class order was not checked: no judge knows these classes"
    if options.data is None:
        text += "; look whether the samples show the names that stand beside them, or train a judge on images of the classes"
        text += ", and give both by --data and --judge"
    else:
        text += "; train one, and give it by --judge"
    command = ["varbench", "train", "judge", "--data", options.data or "FOLDER", "--out", "judge.safetensors"]
    if options.model in presets.names():
        command += ["--model", options.model]
    return Notice(text=text, next_command=shlex.join(command))


def _departures(options: Options) -> dict[str, tuple[object, protocols.Number]]:
    assert options.protocol is not None
    return protocols.departures(options.protocol, vars(options))


def _reference(run: Run, score: str, seen: ReferenceSeen, again: Callable[..., str]) -> Iterator[Notice]:
    """What scores are against decides them as much as the images do."""
    if seen.rebuilt is not None and seen.rebuilt < REBUILT:
        yield Notice(
            text=f"the reference {seen.source} looks like images that came out of this tokenizer: through it they change "
            f"{seen.rebuilt:.2f} times as much as a second time, where other images change more. Against "
            "reconstructions a score is another one; give the images themselves",
            next_command=again(reference="PATH"),
        )
    batch = next(iter(protocols.of_size(run.model.image_side, classes=run.model.classes)), None)
    whole = seen.statistics and seen.spatial
    if score == "FID" and batch is not None and not (whole and seen.images == protocols.BATCH_IMAGES):
        images = [] if seen.images is None else [f"{seen.images:,} images"]
        holds = ", ".join(["mu and sigma"] * seen.statistics + ["mu_s and sigma_s"] * seen.spatial + images)
        yield Notice(
            text=f"FID is against {seen.source} ({holds}), which is not the batch of the ADM suite (mu and sigma, mu_s and "
            f"sigma_s of the training set, {protocols.BATCH_IMAGES:,} images): published figures are against that, and those against the "
            "validation set or against reconstructions (rFID) are others",
            next_command=again(reference=batch.files["reference"].name),
        )
