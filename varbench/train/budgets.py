"""How long what ships was trained, and how long a recipe is: fixed before any schedules were compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from varbench.data.image_set import ImageSet
from varbench.data.shapes import Shapes
from varbench.train.train_tokenizer import TokenizerBudget
from varbench.train.trainer import Budget

AnyBudget = TypeVar("AnyBudget", Budget, TokenizerBudget)

BASE = Budget(steps=2_000, peak_rate=3e-3, batch=32, images=32_000, mean_decay=0.995)
NARROW = Budget(steps=1_500, peak_rate=3e-3, batch=32, images=32_000, mean_decay=0.995)
QUICK_STEPS = 12
"""Of a recipe that is trained in a run that shall be quick."""
GENERATOR = Budget(steps=2_000, peak_rate=2e-3, batch=32, images=32_000, mean_decay=0.995)
"""Of a generator's own network, which begins from nothing: as many images and steps as the base model had."""
QUICK_GENERATOR = Budget(steps=100, peak_rate=2e-3, batch=32, images=16_000, mean_decay=0.95, looks=0)
_RATE = 2e-3
_STEPS_A_LOOK, _MOST_LOOKS = 30, 8


def recipe_budget(steps: int, *, seed: int = 0) -> Budget:
    """Equal for every recipe of as many steps, so that whoever trains it comes to the same weights."""
    return Budget(
        steps=steps,
        seed=seed,
        peak_rate=_RATE,
        batch=32,
        mean_decay=1 - 1 / max(10, steps / 10),
        looks=min(_MOST_LOOKS, steps // _STEPS_A_LOOK),
    )


def on_all_of(data: ImageSet, budget: AnyBudget) -> AnyBudget:
    """With all training images of a data set of the user's own; the procedural one has no end, and has as many as the budget says."""
    return budget if isinstance(data, Shapes) else replace(budget, images=len(data.training))
