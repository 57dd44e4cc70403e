"""Carries a row's images, a batch at a time, from the process that makes them to the processes that score them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from varbench.measure.calls import Request, balanced_labels
from varbench.record import Score
from varbench.record.failure import RowError
from varbench.rows import FULL
from varbench.run import children
from varbench.run.children import Child, ChildEndedError
from varbench.run.findings import Seen
from varbench.run.messages import Begin, Finish, Job, Liken, Likened, Measured, Scored, Take, Taken
from varbench.run.prepare import Run

Ask = Callable[[Any], Any]


def keep_path(folder: Path) -> Path:
    """Where every call leaves its images, whatever they are wanted for."""
    return folder / "images.npz"


class Scorers:
    """The processes that score images: one holds no plugin; a second one, if plugins bring metrics, holds those."""

    def __init__(self, run: Run, *, folder: Path, log: Path) -> None:
        self._run, self._folder, self._log = run, folder, log
        self._started: dict[str, Child] = {}

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._started.values():
            child.end()

    def score(self, row: str, ask: Ask, progress: Callable[[str], None], *, keep: Path | None = None) -> Seen:
        """Has all images of a row made and scored. Only one batch of them exists at a time."""
        options = self._run.options
        scorer = self._child("scoring")
        scorer.ask(Begin(row=row, full=row == FULL, keep=str(keep.resolve()) if keep else None))
        values: dict[str, list[float]] = {}
        better: dict[str, str] = {}
        missing: dict[str, str] = {}
        changed: set[str] = set()
        batches: list[str] = []
        chunk = keep_path(self._folder)
        try:
            for first in range(0, options.images, options.batch):
                labels = balanced_labels(
                    min(options.batch, options.images - first), self._run.model.classes, first=first
                )
                made = ask(Request(row=row, labels=labels, seed=options.seed, first=first, keep=str(chunk.resolve())))
                changed |= set(made.changed)
                taken = Take(chunk=made.chunk, labels=labels)
                seen = self._ask_scorer(scorer, taken)
                assert isinstance(seen, Taken)
                batches.append(seen.images_sha256)
                if self._run.metrics:
                    self._measure(taken, values, better, missing)
                progress(f"{row}, {first + len(labels):,} of {options.images:,} images")
        finally:
            chunk.unlink(missing_ok=True)
        progress(f"{row}, scoring")
        scored = self._ask_scorer(scorer, Finish(expected=options.images))
        assert isinstance(scored, Scored)
        whole = {name: found for name, found in values.items() if len(found) == options.images}
        return Seen(
            scored=scored,
            metrics={name: _mean(name, found, better[name]) for name, found in whole.items()},
            missing={f"metrics.{name}": reason for name, reason in missing.items()},
            changed=tuple(sorted(changed)),
            batches=tuple(batches),
        )

    def liken(self, scored: Path, timed: Path) -> Likened:
        """Images that were made among timed calls: some under the seed that is scored, and some that were only timed."""
        found = self._ask_scorer(
            self._child("scoring"), Liken(scored=str(scored.resolve()), timed=str(timed.resolve()))
        )
        assert isinstance(found, Likened)
        return found

    def _ask_scorer(self, scorer: Child, message: Any) -> Any:
        try:
            return scorer.ask(message)
        except ChildEndedError as error:
            del self._started["scoring"]
            raise RowError(error.failure) from error

    def _measure(
        self, taken: Take, values: dict[str, list[float]], better: dict[str, str], missing: dict[str, str]
    ) -> None:
        """Metrics that fail are left out, with the reason; they cost no row."""
        try:
            found = self._child("metering").ask(taken)
        except (ChildEndedError, RowError) as error:
            self._started.pop("metering", None)
            missing |= dict.fromkeys(self._run.metrics, error.failure.reason)
            return
        assert isinstance(found, Measured)
        better |= found.better
        missing |= {name: failure.reason for name, failure in found.failures.items()}
        for name, some in found.values.items():
            values.setdefault(name, []).extend(some)

    def _child(self, task: str) -> Child:
        if task not in self._started:
            job: Job = self._run.job(task=task, full_images=self._run.inputs)
            self._started[task] = children.start(job, folder=self._folder, log=self._log)
        return self._started[task]


def _mean(name: str, values: list[float], better: str) -> Score:
    """A metric's mean over images, with a 95 % bootstrap interval."""
    import numpy as np

    found = np.asarray(values)
    drawn = np.random.default_rng(0).integers(len(found), size=(400, len(found)))
    low, high = np.quantile(found[drawn].mean(axis=1), (0.025, 0.975))
    plugin = name.partition(".")[0]
    return Score(
        name=name, value=float(found.mean()), low=float(low), high=float(high), n=len(found), better=better,
        implementation=f"plugin {plugin}",
    )  # fmt: skip
