"""Where the weights of a table come from, in words, and what may not be compared because it was trained for longer."""

from __future__ import annotations

from collections.abc import Iterable

from varbench.record import HELD_OUT_LOSS, Training
from varbench.show.entries import Block, Entry

FLAT = 0.01
"""Share of a loss within which it has come to rest."""
FEWEST_LOOKS = 3
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
    notes += _still_moving([training for found in alike.values() for training in found])
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


def _still_moving(found: list[Training]) -> list[str]:
    """Whether longer training would change the weights, where enough looks at held-out images say so."""
    moved = {training.recipe: change for training in found if (change := _last_quarter(training))}
    if not moved:
        return []
    still = [f"{recipe} ({point} {share:.1%})" for recipe, (share, point) in moved.items() if share > FLAT]
    where = "their held-out losses over the last quarter of the steps"
    if not still:
        return [f"Trained out: {where} moved by at most {FLAT:.0%}."]
    return [
        f"Not trained out: {where} moved by more than {FLAT:.0%}, at the point named by the most: {', '.join(still)}."
    ]


def _last_quarter(training: Training) -> tuple[float, str] | None:
    """By how much of its last value a point's held-out loss moved, of the point where that is most; None where too few looked."""
    by_point: dict[str, list[float]] = {}
    for look in training.evaluations:
        if 4 * look.step >= 3 * training.steps and look.score.name == HELD_OUT_LOSS and look.score.value is not None:
            by_point.setdefault(look.point, []).append(look.score.value)
    shares = [
        ((max(values) - min(values)) / values[-1], point)
        for point, values in by_point.items()
        if len(values) >= FEWEST_LOOKS
    ]
    return max(shares, default=None)


def trainings(entries: Iterable[Entry]) -> dict[str, list[Training]]:
    """By recipe, each training once, since rows share their weights."""
    found: dict[str, dict[tuple[str, int], Training]] = {}
    for entry in entries:
        for training in filter(None, (record.training for record in entry.complete)):
            found.setdefault(training.recipe, {}).setdefault((training.key, training.seed), training)
    return {recipe: list(repeats.values()) for recipe, repeats in found.items()}
