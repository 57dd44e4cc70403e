"""Where the weights of a table come from, in words, and what may not be compared because it was trained for longer."""

from __future__ import annotations

from collections.abc import Iterable

from varbench.record import Training
from varbench.show.entries import Block, Entry

_MADE = {
    "shipped": "ship with varbench, trained for {}",
    "here": "trained in this run for {}",
    "cache": "trained on this machine before for {}",
    None: "trained for {}",
}


def training_notes(block: Block) -> tuple[str, ...]:
    """One sentence for all recipes that were made alike; and a warning where recipes had different numbers of steps."""
    alike: dict[tuple[str | None, int, str | None], list[Training]] = {}
    for repeats in trainings(block.everything).values():
        for training in repeats:
            alike.setdefault((training.origin, training.steps, training.device), []).append(training)
    notes = [_told(*how, trainings) for how, trainings in alike.items()]
    most = max((steps for _, steps, _ in alike), default=0)
    fewer = {training.recipe for (_, steps, _), found in alike.items() if steps < most for training in found}
    if fewer:
        notes.append(
            f"Trained for fewer steps than others, so not to be compared in quality: {', '.join(sorted(fewer))}. "
            f"--steps {most} trains all alike."
        )
    return tuple(notes)


def _told(origin: str | None, steps: int, device: str | None, trainings: list[Training]) -> str:
    recipes = ", ".join(dict.fromkeys(training.recipe for training in trainings))
    slowest = max(training.seconds for training in trainings)
    time = f"{slowest / 60:.0f} min" if slowest > 90 else f"{slowest:.0f} s"
    each = " each" if len(trainings) > 1 else ""
    where = f" on {device}" if device else ""
    return f"Weights of {recipes}: {_MADE[origin].format(f'{steps:,} steps{each}{where}')}, in {time} at most."


def trainings(entries: Iterable[Entry]) -> dict[str, list[Training]]:
    """By recipe, each training once, since rows share their weights."""
    found: dict[str, dict[tuple[str, int], Training]] = {}
    for entry in entries:
        for training in filter(None, (record.training for record in entry.complete)):
            found.setdefault(training.recipe, {}).setdefault((training.key, training.seed), training)
    return {recipe: list(repeats.values()) for recipe, repeats in found.items()}
