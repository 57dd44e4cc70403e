"""How long what ships was trained, and how long a recipe is: fixed before any schedules were compared."""

from __future__ import annotations

from varbench.train.trainer import Budget

BASE = Budget(steps=2_000, peak_rate=3e-3, batch=32, images=32_000, mean_decay=0.995)
NARROW = Budget(steps=1_500, peak_rate=3e-3, batch=32, images=32_000, mean_decay=0.995)
RECIPE = Budget(steps=60, peak_rate=3e-4, batch=32, images=60_000, mean_decay=0.95, looks=2)
QUICK_RECIPE = Budget(steps=12, peak_rate=3e-4, batch=32, images=60_000, mean_decay=0.9, looks=0)
GENERATOR = Budget(steps=2_000, peak_rate=2e-3, batch=32, images=32_000, mean_decay=0.995)
"""Of a generator's own network, which begins from nothing: as many images and steps as the base model had."""
QUICK_GENERATOR = Budget(steps=100, peak_rate=2e-3, batch=32, images=16_000, mean_decay=0.95, looks=0)
