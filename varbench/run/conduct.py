"""Conducts a run: starts its processes, asks them in order, and writes each row's record again whenever more is known."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from varbench.base.display import Display
from varbench.measure import speed, strain
from varbench.measure.board_state import BoardWatch
from varbench.measure.environment import cores
from varbench.measure.overseer import Overseer, ScoredImages
from varbench.measure.speed import Alone, Pace, SpeedRound
from varbench.record import Record, Score, row_slug, write_record
from varbench.record.failure import Failure, RowError
from varbench.record.options import pairs_of_further_rounds
from varbench.rows import FULL
from varbench.run import children, makers, verify
from varbench.run.children import Child, ChildEndedError
from varbench.run.fill import fill, now
from varbench.run.findings import Findings, Looks, Seen
from varbench.run.full_alone import full_alone
from varbench.run.kept_parts import KeptParts
from varbench.run.looking import look_at
from varbench.run.messages import OWN_WEIGHTS, Job, Ready, Trained
from varbench.run.prepare import Run, WeightSet
from varbench.run.scorers import Scorers, keep_path
from varbench.run.side_by_side import side_by_side
from varbench.run.task import Task
from varbench.run.timing import finished, width
from varbench.run.trainings import Trainings

PARTS = ".parts"
"""Sub-folder of the run for jobs and for the parts of rows that are measured already."""

Part = TypeVar("Part")


@dataclass
class Conduct:
    run: Run
    out: Path
    display: Display
    done: dict[str, Record] = field(default_factory=dict)
    """Complete records of an earlier run with the same inputs, by row; these rows are not measured again."""
    found: dict[str, Findings] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    """By weight set."""
    quiet: strain.Quiet = field(default_factory=strain.Quiet)
    _at: str | None = None
    """The row whose turn it is."""

    def __post_init__(self) -> None:
        for name, row in self.run.rows.items():
            self.found.setdefault(name, Findings(failure=row.resolved.failure))

    # The order of things

    def everything(self) -> None:
        """Training, then images with their scores and a look at memory, then rounds of speed.

        A row that fails takes part in nothing further.
        """
        self.save_all()
        self.train()
        quick = self.run.options.quick
        with self.scorers() as scorers:
            for weights in () if quick else self.run.weight_sets:
                with self.display.part("images and memory", weights.key):
                    self.in_children(weights, self._images(weights, scorers))
            for number in range(self.run.rounds_of(*self.run.rows)):
                sets = [weights for weights in self.run.weight_sets if number < self.run.rounds_of(*weights.rows)]
                for weights in sets[::-1] if number % 2 else sets:
                    # A quick look spares itself the second process.
                    first = (self._images(weights, scorers),) if quick and number == 0 else ()
                    kind = "images and speed" if first else "speed"
                    with self.display.part(kind, f"{weights.key}, round {number + 1}"):
                        self.in_children(weights, *first, self._speed(weights, number, scorers))

    def train(self) -> None:
        """Every recipe in a child of its own; on a CPU as many at once as there are cores, of one thread each.

        Two threads of one training wait for each other at every operator; two trainings never do. To look up what ships needs none.
        """
        places = cores() if self.run.options.device == "cpu" else 1
        wanted = {one.key: one for one in self.run.weight_sets if one.trains is not None and self._alive(one.rows)}
        if not wanted:
            self.display.spare("training")
            return
        at_once, together = min(places, len(wanted)), Trainings(self.display, wanted)

        def start(weights: WeightSet) -> Child:
            self._begin(self._alive(weights.rows))
            return self._child(
                self.run.job(task="training", rows=(weights.trains,)),
                "train",
                on_alive=partial(together.reached, weights.key),
                threads=places // at_once if places > 1 and not self.run.ships(weights) else None,
            )

        with self.display.part("training", together.title):
            starts = {key: partial(start, weights) for key, weights in wanted.items()}
            for key, found in side_by_side(starts, Trained, at_once=at_once):
                alive = self._alive(wanted[key].rows)
                together.ended(key, None if isinstance(found, Failure) else found)
                if isinstance(found, Failure):
                    self._fail(alive, replace(found, reason=f"its weights could not be trained: {found.reason}"))
                    continue
                self.trained[key] = found
                self._update(alive, trained=found)

    def _images(self, weights: WeightSet, scorers: Scorers) -> Task:
        """Images of every row that is scored, and a look at each row's memory."""
        looks_wanted = not self.run.options.quick

        def lacking(name: str) -> bool:
            found, scored = self.found[name], self.run.is_scored(name)
            if found.seen is None and scored and self._are_kept(name) and (seen := self._earlier(Seen, name)):
                self._update((name,), seen=seen)
            if found.looks is None and looks_wanted and (looks := self._earlier(Looks, name)):
                self._update((name,), looks=looks)
            found = self.found[name]
            return (found.seen is None and scored) or (found.looks is None and looks_wanted)

        def work(subjects: tuple[Child, ...], names: tuple[str, ...]) -> None:
            for name in names:
                with self._turn(name):
                    if self.found[name].seen is None and self.run.is_scored(name):
                        self.display.detail(f"images of {name}")
                        groups = self.groups_path(name)
                        seen = scorers.score(
                            name, subjects, self.display.detail, keep=self._images_path(name), groups=groups
                        )
                        self._kept.write(seen, name, trained=self.found[name].trained)
                        self._update((name,), seen=seen)
                        shutil.rmtree(groups, ignore_errors=True)
                    if self.found[name].looks is None and looks_wanted:
                        self.display.detail(f"memory of {name}")
                        looks = look_at(subjects[0].make, name, self.run)
                        self._kept.write(looks, name, trained=self.found[name].trained)
                        self._update((name,), looks=looks)
                    self._save((name,))
                    if not self.run.rounds_of(name):
                        self.display.note(finished(name, self.found[name]))

        # Where a row brings its own weights, the full model is beside it for its time alone, and not in its memory.
        beside = not weights.key.startswith(OWN_WEIGHTS)
        return Task(title="images", lacking=lacking, work=work, full_beside=beside, helped=True)

    def _full_alone(self, names: tuple[str, ...]) -> AbstractContextManager[Alone | None]:
        if not self._full_runs:
            return contextlib.nullcontext()
        start, check = partial(self._child, title="full-alone"), partial(self._check, (FULL,))
        return full_alone(self.run, names, start, check=check, strain=self._strain, note=self.display.note)

    def _strain(self, child: Child) -> strain.Reading | None:
        """On a GPU processors say nothing of how long a call had to take."""
        return strain.read(child.pid) if self.run.options.device == "cpu" else None

    def _speed(self, weights: WeightSet, number: int, scorers: Scorers) -> Task:
        """A round of speed: rows take turns beside the full model."""
        options = self.run.options
        pairs = options.count if number < options.rounds else pairs_of_further_rounds(options.count)
        enough = {
            name: speed.error_within(options.precision, processes=self.run.processes_of(name)) for name in weights.rows
        }

        def lacking(name: str) -> bool:
            if number >= self.run.rounds_of(name):
                return False
            if number not in self.found[name].speed and (part := self._earlier_round(name, number)):
                self._update((name,), speed={**self.found[name].speed, number: part})
            return number not in self.found[name].speed

        def at(watch: BoardWatch, name: str) -> None:
            watch.poll()
            self._at = name
            self.display.detail(" ".join(filter(None, (name, width(self.found[name])))))

        def work(subjects: tuple[Child, ...], names: tuple[str, ...]) -> None:
            (subject,), full = subjects, FULL if self._full_runs else None
            overseer = Overseer(
                # Drawn when the process is there already: nobody can have prepared for it.
                secret=secrets.token_hex(16),
                batch=options.batch,
                classes=self.run.model.classes,
                calls=options.count,
                warm=self.run.warm_calls,
                keep=keep_path(self.parts),
                scored={
                    name: ScoredImages(count=options.images, seed=options.seed)
                    for name in names
                    if self.found[name].seen is not None
                },
            )
            loaded = self.found[names[0]].loaded
            watch = BoardWatch(loaded.environment.gpu_uuid if loaded else None)
            self.quiet.hope()
            with self._full_alone(names) as alone:
                rounds = speed.time_rows(
                    subject.make,
                    overseer.order(names),
                    full=full,
                    pace=Pace(batch=options.batch, pairs=pairs, error=enough.__getitem__, budget=options.budget),
                    overseer=overseer,
                    strain=partial(self._strain, subject),
                    failed=lambda name, error: self._fail((name,), error.failure),
                    at=partial(at, watch),
                    settle=self.quiet.wait if options.device == "cpu" and options.budget > 0 else lambda: False,
                    alone=alone,
                    used=lambda: strain.used_seconds(subject.pid),
                )
            self._at = None
            unfit = watch.unfit()
            for name, found in rounds.items():
                found = replace(found, oversight=scorers.oversight(overseer, name), board=unfit, unseen=watch.unseen)
                self._kept.write(found, name, number, trained=self.found[name].trained)
                self._update((name,), speed={**self.found[name].speed, number: found})
                if len(self.found[name].speed) == self.run.rounds_of(name):
                    self.display.note(finished(name, self.found[name]))
            self._save(names)

        return Task(title="speed", lacking=lacking, work=work, full_beside=True)

    # Processes

    def in_children(self, weights: WeightSet, *tasks: Task) -> None:
        """Does the tasks for all rows in one process. If a row crashes it, a new process does what is left. If it ends when it is no
        row's turn, as while it loads them, the rows of each plugin get one of their own, which shows whose fault it is."""
        apart = False

        def lacking(task: Task) -> tuple[str, ...]:
            return tuple(name for name in self._alive(weights.rows) if task.lacking(name))

        while wanted := {name for task in tasks for name in lacking(task)}:
            left = tuple(name for name in weights.rows if name in wanted)[: self.run.together]
            left = self.run.of_first_plugin(left) if apart else left
            self._begin(left)
            subject: Child | None = None
            ended: ChildEndedError | RowError | None = None
            self._at = None
            try:
                job = self._subject_job(weights, left, beside=any(task.full_beside for task in tasks))
                with self._child(job, tasks[-1].title) as subject:
                    loaded = subject.receive(Ready)
                    self._check(left, loaded, asked=job)
                    for task in tasks:
                        if names := tuple(name for name in lacking(task) if name in left):
                            with self._helpers(task, names, job) as helpers:
                                task.work((subject, *helpers), names)
            except (ChildEndedError, RowError) as error:
                ended = error
            if subject is not None:
                self._update(left, stderr_tail=subject.stderr_tail)
            if ended is not None and self._at is None and self.run.of_first_plugin(left) != left:
                self.display.note(f"  {ended.failure.reason}, at no row's turn: the rows of each plugin begin apart")
                apart = True
            elif ended is not None:
                blamed = left if self._at is None else (self._at,)
                if isinstance(ended, ChildEndedError):
                    self._update(blamed, exit_code=ended.exit_code, stderr_tail=ended.stderr_tail)
                self._fail(blamed, ended.failure)

    @contextmanager
    def _helpers(self, task: Task, names: tuple[str, ...], job: Job) -> Iterator[tuple[Child, ...]]:
        """Further processes that hold the same rows, where the task is done faster by several."""
        wanted = makers.at_once(self.run, names) - 1 if task.helped else 0
        with contextlib.ExitStack() as stack:
            helpers = tuple(stack.enter_context(self._child(job, f"{task.title}-{n + 2}")) for n in range(wanted))
            for helper in helpers:
                self._check(names, helper.receive(Ready), asked=job)
            yield helpers

    def _subject_job(self, weights: WeightSet, names: tuple[str, ...], *, beside: bool) -> Job:
        trained = self.trained.get(weights.key)
        files = self.run.files
        if trained is not None:
            files = {**(files or {}), **trained.files}
        full = FULL if beside and self._full_runs else None
        wanted = names if full is None or full in names else (*names, full)
        return self.run.job(task="making", rows=wanted, files=files)

    def _check(self, names: tuple[str, ...], loaded: Ready, *, asked: Job) -> None:
        for name in names:
            row = self.run.rows[name]
            wrong = verify.mismatches(self.run, row, loaded, self.found[name].trained, asked=asked)
            before = self.found[name]
            self._update((name,), loaded=before.loaded or loaded, mismatches=tuple({*before.mismatches, *wrong}))

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """An error that the row raises fails this row alone; if the whole process ends meanwhile, this row is blamed."""
        self._at = name
        try:
            yield
        except RowError as error:
            self._fail((name,), error.failure)
        self._at = None

    def _child(self, job: Job, title: str, **given: Any) -> Child:
        given = {"on_alive": lambda alive: self.display.detail(alive.text), **given}
        return children.start(job, folder=self.parts, log=self.out / "logs" / f"{title}.log", **given)

    def scorers(self) -> Scorers:
        return Scorers(self.run, folder=self.parts, log=self.out / "logs" / "score.log")

    # What is known

    def _alive(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self.done and self.found[name].failure is None)

    @property
    def _full_runs(self) -> bool:
        """Whether rows can be timed beside the full model: on their own weights, or on its own where they bring others."""
        return self.found[FULL].failure is None

    def _begin(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._update((name,), started=self.found[name].started or now())

    def _update(self, names: tuple[str, ...], **parts: Any) -> None:
        for name in names:
            self.found[name] = replace(self.found[name], **parts)

    def _fail(self, names: tuple[str, ...], failure: Failure) -> None:
        for name in names:
            if self.found[name].failure is None:
                self._update((name,), failure=failure)
                self.display.note(f"  {name}: {failure.status}: {failure.reason}")
        self._save(names)

    # On disk

    @property
    def parts(self) -> Path:
        return self.out / PARTS

    def records(self) -> list[Record]:
        return [self._filled(name) for name in self.run.rows]

    def _filled(self, name: str) -> Record:
        return fill(self.run, self.run.rows[name], self.found[name], floors=self._floors, others=self.found)

    @property
    def _floors(self) -> dict[str, Score]:
        seen = self.found[FULL].seen
        return dict(seen.scored.quality.floors) if seen and seen.scored.quality else {}

    def save_all(self) -> list[Record]:
        """Writes the records of all rows but those that were complete before the run."""
        return self._save(tuple(self.run.rows))

    def _save(self, names: tuple[str, ...]) -> list[Record]:
        records = []
        for name in names:
            if name not in self.done:
                records.append(self._filled(name))
                write_record(records[-1], self.out, replace=True)
        return records

    @cached_property
    def _kept(self) -> KeptParts:
        return KeptParts(run=self.run, folder=self.parts)

    def _earlier_round(self, name: str, number: int) -> SpeedRound | None:
        """Without neighbours, since the full model could not run then, it counts only where that cannot run now either."""
        part = self._kept.read(SpeedRound, name, number, trained=self.found[name].trained)
        if part is None or (self._full_runs and any(pair.full is None for pair in part.throughput)):
            return None
        return part

    def _earlier(self, kind: type[Part], name: str) -> Part | None:
        """A part that was measured before this run was interrupted, or by another run on this machine. Not used for times."""
        trained = self.found[name].trained
        if (part := self._kept.read(kind, name, trained=trained)) is not None:
            return part
        if (part := self._kept.of_machine(kind, name, trained=trained)) is not None:
            self._update((name,), earlier=self.found[name].earlier | {kind.__name__})
        return part

    def groups_path(self, name: str) -> Path:
        return self._kept.groups_path(name, trained=self.found[name].trained)

    def _images_path(self, name: str) -> Path | None:
        """Where all scored images of a row are kept, if that was asked for."""
        kind = self.run.options.keep_images
        return self.out / "images" / f"{row_slug(name)}{'.npz' if kind == 'npz' else ''}" if kind else None

    def _are_kept(self, name: str) -> bool:
        path = self._images_path(name)
        return path is None or path.exists()
