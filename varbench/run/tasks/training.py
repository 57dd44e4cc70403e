"""Weights of a recipe: those that ship, or from the cache, or trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from varbench import rows
from varbench.base.display import Display, Standing
from varbench.base.hashing import file_hash
from varbench.data.given import image_set
from varbench.plan import presets
from varbench.rows.grammar import Row
from varbench.run.channel import Channel
from varbench.run.messages import Ahead, Alive, Job, Trained
from varbench.run.tasks.resolving import code_of
from varbench.train.budgets import GENERATOR, QUICK_GENERATOR, QUICK_STEPS, on_all_of, recipe_budget
from varbench.train.generators import generator_ahead, generator_parts, generator_weights, trained_generator
from varbench.train.progress import TRAINING
from varbench.train.recipes import RecipeWeights, recipe_parts, recipe_weights, weights_ahead
from varbench.train.shipped import shipped_with


def run(job: Job, channel: Channel) -> None:
    if job.look_only:
        found = {name: _ahead(job, name) for name in job.rows}
        channel.send(
            Ahead(
                origins={name: None if ready is None else ready.origin for name, ready in found.items()},
                hashes={name: _hashes(ready.files) for name, ready in found.items() if ready is not None},
            )
        )
        return
    (name,) = job.rows
    row, given = asked(job, name)
    code = code_of(row.plugins)  # as it is now: training may take hours
    if trained_generator(row):
        given = _own(job, given)
        display = Display(generator_parts(given["budget"]), screen=_AtParent(channel))
        done = generator_weights(row, **given, device=job.options.device, display=display)
    else:
        display = Display(recipe_parts(row, given["budget"]), screen=_AtParent(channel))
        done = recipe_weights(row, **given, device=job.options.device, display=display)
    channel.send(
        Trained(
            log=done.log,
            note=done.note,
            files={part: str(path) for part, path in done.files.items()},
            hashes=_hashes(done.files),
            code=code,
        )
    )


@dataclass(frozen=True)
class _AtParent:
    """The run's display is the parent's."""

    channel: Channel

    def begins(self, title: str, standing: Standing) -> None:
        self.channel.alive(title, share=standing.share)

    def shows(self, title: str, lines: Sequence[str], standing: Standing) -> None:
        kind = title.partition(":")[0]
        self.channel.alive("  ".join(lines if kind == TRAINING else (kind, *lines)), share=standing.share)

    def prints(self, line: str) -> None:
        self.channel.send(Alive(text=line.strip()))


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    return {part: file_hash(path) for part, path in files.items()}


def asked(job: Job, name: str) -> tuple[Row, dict[str, Any]]:
    """The row, and what its recipe is trained from."""
    assert job.files is not None
    options, side = job.options, job.model.image_side
    files = {part: Path(path) for part, path in job.files.items()}
    data = image_set(options.data, model=options.model, side=side)
    budget = recipe_budget(QUICK_STEPS if options.steps is None else options.steps, seed=options.seed)
    own = options.train or options.weights is not None
    own = own or (options.data is not None and presets.preset(options.model).draws_images)
    given = {
        "vae": files.pop("vae"),
        "pretrained": files,
        "data": data,
        "budget": on_all_of(data, budget),
        "shipped": None if own else shipped_with(options.model, seed=options.seed, steps=options.steps),
    }
    # Plain weights, whatever replaces modules later.
    return rows.without_transforms(rows.resolve(name, job.model)), given


def _own(job: Job, given: dict[str, Any]) -> dict[str, Any]:
    """The same for a generator, whose network begins from nothing, or learns from the full model."""
    usual, steps = QUICK_GENERATOR if job.options.quick else GENERATOR, job.options.steps
    budget = replace(usual, steps=usual.steps if steps is None else steps, seed=job.options.seed)
    same = {name: given[name] for name in ("vae", "data", "shipped")}
    return {**same, "budget": budget, "main": given["pretrained"]["main"]}


def _ahead(job: Job, name: str) -> RecipeWeights | None:
    row, given = asked(job, name)
    return generator_ahead(row, **_own(job, given)) if trained_generator(row) else weights_ahead(row, **given)
