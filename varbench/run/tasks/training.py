"""Weights of a recipe: those that ship, or from the cache, or trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from varbench import rows
from varbench.base.hashing import file_hash
from varbench.data.folder import open_folder
from varbench.data.shapes import Shapes
from varbench.run.channel import Channel
from varbench.run.messages import Job, Trained
from varbench.train.budgets import GENERATOR, QUICK_GENERATOR, QUICK_STEPS, recipe_budget
from varbench.train.generators import generator_weights, trained_generator
from varbench.train.recipes import recipe_weights
from varbench.train.section import section
from varbench.train.shipped import shipped_with


def run(job: Job, channel: Channel) -> None:
    assert job.files is not None
    options, (name,) = job.options, job.rows
    row = rows.without_transforms(rows.resolve(name, job.model))  # plain weights, whatever replaces modules later
    files = {part: Path(path) for part, path in job.files.items()}
    side = job.model.image_side
    data = open_folder(options.data, side=side) if options.data else Shapes(side=side)
    vae = files.pop("vae")
    if trained_generator(row):
        usual = QUICK_GENERATOR if options.quick else GENERATOR
        generators = replace(usual, steps=options.steps or usual.steps, seed=options.seed)
        done = generator_weights(row, vae=vae, data=data, budget=generators, device=options.device)
    else:
        own = options.train or options.weights is not None or options.data is not None
        done = recipe_weights(
            row,
            vae=vae,
            pretrained=files,
            data=data,
            budget=recipe_budget(QUICK_STEPS if options.steps is None else options.steps, seed=options.seed),
            shipped=None if own else shipped_with(options.model, seed=options.seed, steps=options.steps),
            device=options.device,
        )
    channel.send(
        Trained(
            training=None if done.record is None else section(done, recipe=row.recipe_name, model=job.model.name),
            note=done.note,
            files={part: str(path) for part, path in done.files.items()},
            hashes={part: file_hash(path) for part, path in done.files.items()},
        )
    )
