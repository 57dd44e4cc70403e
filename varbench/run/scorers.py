"""Carries a row's images, a batch at a time, from the process that makes them to the processes that score them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, starmap
from pathlib import Path

from varbench.measure.calls import Request, Traced, balanced_labels
from varbench.measure.overseer import Overseer, Oversight
from varbench.record import Score
from varbench.record.failure import RowError
from varbench.rows import FULL
from varbench.run import children
from varbench.run.children import Answer, Child, ChildEndedError
from varbench.run.findings import Seen, kept
from varbench.run.findings import keep as write_part
from varbench.run.makers import MakingProcess, in_order, threads_of_each
from varbench.run.messages import Begin, Begun, Finish, Job, Liken, Likened, Measured, Message, Scored, Take, Taken
from varbench.run.prepare import Run


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """What the parent knows of some of a row's images, beside what the scorer keeps of them."""

    images: int = 0
    """The number behind the last of them."""
    batches: tuple[str, ...] = ()
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    traces: tuple[Traced, ...] = ()


def _together(some: Sequence[_Counted]) -> _Counted:
    """Of images that were made one behind the other."""
    return _Counted(
        images=some[-1].images,
        batches=tuple(chain.from_iterable(one.batches for one in some)),
        values={
            name: tuple(chain.from_iterable(one.values.get(name, ()) for one in some))
            for name in chain.from_iterable(one.values for one in some)
        },
        better=dict(chain.from_iterable(one.better.items() for one in some)),
        missing=dict(chain.from_iterable(one.missing.items() for one in some)),
        changed=tuple(sorted(set(chain.from_iterable(one.changed for one in some)))),
        traces=tuple(sorted(set(chain.from_iterable(one.traces for one in some)))),
    )


def _counted_path(groups: Path, first: int) -> Path:
    """In the folder of a row's groups: what was counted of the one that begins with this image."""
    return groups / f"counted-{first:08d}.json"


def _counted(groups: Path, *, first: int, before: int) -> list[_Counted]:
    """Of each group from this image on that lies there without a gap, whoever made it."""
    found: list[_Counted] = []
    while (more := kept(_Counted, _counted_path(groups, first), before=before)) and more.images > first:
        found.append(more)
        first = more.images
    return found


def numbered(file: Path) -> int:
    """The first image of what such a file, or the scorer's beside it, holds."""
    return int(file.stem[-8:])


def keep_path(folder: Path, maker: int = 0) -> Path:
    """Where every call of a process leaves its images, whatever they are wanted for."""
    return folder / f"images-{maker}.npz"


class Scorers:
    """The processes that score images: one holds no plugin, and one each of those that bring metrics."""

    def __init__(self, run: Run, *, folder: Path, log: Path) -> None:
        self._run, self._folder, self._log = run, folder, log
        self._started: dict[str | None, Child] = {}
        """By the plugin that it holds."""
        self._without: dict[str, str] = {}
        """Plugins whose process has ended, and why: they are not asked again."""
        self.on_kept: Callable[[Path], None] = lambda file: None
        """Is told of each file that is kept of a group of images."""

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._started.values():
            child.end()

    def score(
        self,
        row: str,
        makers: Sequence[MakingProcess],
        progress: Callable[[str], None],
        *,
        keep: Path | None = None,
        groups: Path | None = None,
    ) -> Seen:
        """Has all images of a row made and scored. Only one batch of them exists at a time.

        In `groups` lies how far it is; it goes on from there, and images that were known are not made again.
        """
        options = self._run.options
        scorer = self._child()
        counted = self._collect(row, makers, progress, keep=keep, groups=groups, images=(0, options.images))
        progress(f"{row}, scoring")
        scored = self._ask_scorer(scorer, Finish(expected=options.images), Scored)
        whole = {name: found for name, found in counted.values.items() if len(found) == options.images}
        return Seen(
            scored=scored,
            metrics={name: _mean(name, found, counted.better[name]) for name, found in whole.items()},
            missing={f"metrics.{name}": reason for name, reason in counted.missing.items()},
            changed=counted.changed,
            batches=counted.batches,
            traces=counted.traces,
        )

    def collect(
        self,
        row: str,
        makers: Sequence[MakingProcess],
        progress: Callable[[str], None],
        *,
        groups: Path,
        images: tuple[int, int],
    ) -> None:
        """Has some of a row's images made and looked at, for `score` to go on from, here or elsewhere; whole groups of them."""
        self._collect(row, makers, progress, keep=None, groups=groups, images=images)

    def _collect(
        self,
        row: str,
        makers: Sequence[MakingProcess],
        progress: Callable[[str], None],
        *,
        keep: Path | None,
        groups: Path | None,
        images: tuple[int, int],
    ) -> _Counted:
        options, (start, end) = self._run.options, images
        scorer = self._child()
        found = [] if groups is None else _counted(groups, first=start, before=self._run.began)
        begun = scorer.ask(
            Begin(
                row=row,
                full=row == FULL,
                keep=str(keep.resolve()) if keep else None,
                groups=str(groups.resolve()) if groups else None,
                first=start,
                upto=found[-1].images if found else start,
                before=self._run.began,
                threads=threads_of_each(len(makers)),
            ),
            Begun,
        )
        found = [one for one in found if one.images <= begun.known]
        group: list[_Counted] = []  # of each batch since the last one

        def request(place: int, first: int) -> Request:
            return Request(
                row=row,
                labels=balanced_labels(min(options.batch, end - first), self._run.model.classes, first=first),
                seed=options.seed,
                first=first,
                keep=str(keep_path(self._folder, place % len(makers)).resolve()),
                threads=threads_of_each(len(makers)),
            )

        requests = starmap(request, enumerate(range(begun.known, end, options.batch)))
        with contextlib.closing(in_order(makers, requests, taken=(self._folder / "taken.npz").resolve())) as replies:
            for asked, made in replies:
                assert made.chunk is not None
                taken = Take(chunk=made.chunk, labels=asked.labels)
                seen = self._ask_scorer(scorer, taken, Taken)
                batch = replace(
                    self._measured(taken) if self._run.metrics else _Counted(),
                    images=asked.first + len(asked.labels),
                    batches=(seen.images_sha256,),
                    changed=made.changed,
                    traces=(made.traced(asked),),
                )
                group.append(batch)
                if groups is not None and seen.known == batch.images:
                    whole = _together(group)
                    first = found[-1].images if found else start
                    write_part(whole, _counted_path(groups, first))
                    for file in sorted(groups.glob(f"*{first:08d}.*")):
                        self.on_kept(file)
                    found.append(whole)
                    group.clear()
                progress(f"{row}, {batch.images:,} of {end:,} images")
        return _together([*found, *group])

    def oversight(self, overseer: Overseer, row: str) -> Oversight:
        """What was seen of a row's timed calls, their images included."""
        scored, timed = overseer.set_aside(row)
        if not (scored.exists() and timed.exists()):
            return overseer.oversight(row)
        found = self.liken(scored, timed)
        for path in (scored, timed):
            path.unlink()
        return overseer.oversight(row, sha256=found.images_sha256, chance=found.chance)

    def liken(self, scored: Path, timed: Path) -> Likened:
        """Images that were made among timed calls: some under the seed that is scored, and some that were only timed."""
        return self._ask_scorer(self._child(), Liken(scored=str(scored.resolve()), timed=str(timed.resolve())), Likened)

    def _ask_scorer(self, scorer: Child, message: Message, kind: type[Answer]) -> Answer:
        try:
            return scorer.ask(message, kind)
        except ChildEndedError as error:
            del self._started[None]
            raise RowError(error.failure) from error

    def _measured(self, taken: Take) -> _Counted:
        """Metrics that fail are left out, with the reason; they cost no row."""
        values: dict[str, tuple[float, ...]] = {}
        better: dict[str, str] = {}
        missing: dict[str, str] = {}
        for plugin in self._run.metrics:
            if plugin in self._without:
                missing[plugin] = self._without[plugin]
                continue
            try:
                found = self._child(plugin).ask(taken, Measured)
            except (ChildEndedError, RowError) as error:
                self._without[plugin] = missing[plugin] = error.failure.reason
                continue
            better |= found.better
            missing |= {name: failure.reason for name, failure in found.failures.items()}
            values |= {name: tuple(some) for name, some in found.values.items()}
        return _Counted(values=values, better=better, missing=missing)

    def _child(self, plugin: str | None = None) -> Child:
        if plugin not in self._started:
            task = "scoring" if plugin is None else "metering"
            job: Job = self._run.job(task=task, metrics_of=plugin, full_images=self._run.rows[FULL].inputs)
            self._started[plugin] = children.start(job, folder=self._folder, log=self._log)
        return self._started[plugin]


def _mean(name: str, values: Sequence[float], better: str) -> Score:
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
