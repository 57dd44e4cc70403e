"""Trains a recipe, or takes it from the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from varbench import rows
from varbench.base.hashing import file_hash
from varbench.data.folder import open_folder
from varbench.data.shapes import Shapes
from varbench.run.channel import Channel
from varbench.run.messages import Job, Trained
from varbench.train.budgets import GENERATOR, QUICK_GENERATOR, QUICK_RECIPE, RECIPE
from varbench.train.generators import generator_weights, trained_generator
from varbench.train.recipes import recipe_weights
from varbench.train.section import section


def run(job: Job, channel: Channel) -> None:
    assert job.files is not None
    options, (name,) = job.options, job.rows
    row = rows.without_transforms(rows.resolve(name, job.model))  # plain weights, whatever replaces modules later
    files = {part: Path(path) for part, path in job.files.items()}
    whole, quick = (GENERATOR, QUICK_GENERATOR) if trained_generator(row) else (RECIPE, QUICK_RECIPE)
    budget = replace(quick if options.quick else whole, seed=options.seed)
    if options.steps is not None:
        budget = replace(budget, steps=options.steps)
    side = job.model.image_side
    data = open_folder(options.data, side=side) if options.data else Shapes(side=side)
    vae = files.pop("vae")
    if trained_generator(row):
        done, recipe = generator_weights(row, vae=vae, data=data, budget=budget, device=options.device), row.name
    else:
        done = recipe_weights(row, vae=vae, pretrained=files, data=data, budget=budget, device=options.device)
        recipe = f"{row.recipe_plugin}@{row.recipe}"
    channel.send(
        Trained(
            training=None if done.record is None else section(done.record, recipe=recipe, model=job.model.name),
            files={part: str(path) for part, path in done.files.items()},
            hashes={part: file_hash(path) for part, path in done.files.items()},
        )
    )
