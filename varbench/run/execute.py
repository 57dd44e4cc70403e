"""Runs the children of a run one after another, and keeps every row's record on disk as it grows."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from varbench import rows
from varbench.base import stats
from varbench.base.hashing import digest
from varbench.base.places import cache_folder
from varbench.base.whole_files import write_whole
from varbench.errors import UserError
from varbench.measure.environment import environment
from varbench.record import Record, Status, write_record
from varbench.run import children, schedule
from varbench.run.children import Ended, job_command, run_child
from varbench.run.display import Display
from varbench.run.filling import fill, now
from varbench.run.jobs import Job
from varbench.run.prepare import Measured, Run, WeightSet
from varbench.run.reasons import Failure

PARTS = ".parts"
"""Folder, within the run's, of jobs and of what finished children have said."""


@dataclass
class Execution:
    run: Run
    out: Path
    progress: Display
    done: dict[str, Record]
    """Complete and unchanged records that were found, by row; their children are left out."""
    trained: dict[str, dict[str, Any]] = field(default_factory=dict)
    floors: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> Path:
        return self.out / PARTS

    def rows(self) -> dict[str, Measured]:
        return self.run.prepared.measured

    def everything(self) -> None:
        """Training, quality, memory, then rounds of speed; a row that fails takes part in nothing further."""
        base = schedule.base_job(self.run.options, self.run.prepared)
        self.save_all()
        for weights, job in schedule.training_jobs(base, self.run.prepared):
            if self._alive(weights.rows):
                self._train(weights, job)
        for weights, job in schedule.quality_jobs(base, self.run.prepared, self.run.quality_rows):
            self._measure(weights, job, "quality", self._take_quality)
        for weights, job in () if self.run.options.quick else schedule.memory_jobs(base, self.run.prepared):
            self._measure(weights, job, "memory", self._take_memory)
        for number in range(self.run.options.rounds):
            for weights, job in schedule.speed_jobs(base, self.run.prepared, round=number):
                job = replace(job, anchor=self.rows()[rows.FULL].failure is None)
                self._measure(weights, job, f"speed, round {number + 1} of {self.run.options.rounds}", self._take_speed)

    def aa_floor(self) -> float | None:
        """The full model against itself: its row, and its plan once more in the same children."""
        if rows.FULL in self.done:
            timing = self.done[rows.FULL].timing
            return timing.aa_floor if timing else None
        found = [said for said in self.rows()[rows.FULL].speed.values() if said.get("anchor")]
        if not found:
            return None
        row = [tuple(said["columns"]["throughput"]["transformer"]) for said in found]
        return stats.aa_floor(row, [tuple(said["anchor"]) for said in found])

    def records(self) -> list[Record]:
        floor = self.aa_floor()
        return [fill(self.run, one, floors=self.floors, aa_floor=floor) for one in self.rows().values()]

    def save_all(self) -> list[Record]:
        """Writes every row's record that is not there complete already."""
        records = [record for record in self.records() if record.row.row not in self.done]
        for record in records:
            write_record(record, self.out, replace=True)
        return records

    def _save(self, names: tuple[str, ...]) -> None:
        floor = self.aa_floor()
        for name in names:
            if name not in self.done:
                record = fill(self.run, self.rows()[name], floors=self.floors, aa_floor=floor)
                write_record(record, self.out, replace=True)

    def _alive(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self.done and self.rows()[name].failure is None)

    def _train(self, weights: WeightSet, job: Job) -> None:
        self.progress.step(f"weights of {weights.key}")
        alive = self._alive(weights.rows)
        for name in alive:
            self.rows()[name].started = self.rows()[name].started or now()
        ended = self._child(job, "train")
        said = ended.of("result")
        if said:
            self.trained[weights.key] = said[0]
            for name in alive:
                self.rows()[name].training = said[0]
            return
        failure = _failure_of(ended, job.rows[0])
        for name in alive:
            one = self.rows()[name]
            one.failure = replace(failure, reason=f"its weights could not be trained: {failure.reason}")
            one.stderr_tail, one.exit_code = ended.stderr_tail, ended.exit_code
        self.progress.note(f"  {weights.key}: {failure.status}: {failure.reason}")
        self._save(alive)

    def _measure(
        self,
        weights: WeightSet,
        job: Job,
        title: str,
        take: Callable[[Measured, Job, dict[str, Any]], None],
    ) -> None:
        """One job, in as many children as it takes: each ends with a row's failure, or with all rows."""
        left = self._alive(job.rows)
        if not left:
            return
        files = self.trained.get(weights.key, {}).get("files")
        if files is not None:
            job = replace(job, files={**(job.files or {}), **files})
        self.progress.step(f"{title}: {weights.key}, {len(left)} row{'s' if len(left) != 1 else ''}")
        while left:
            job = replace(job, rows=left, inputs=digest([self.rows()[name].inputs for name in left]))
            found = self._finished(job)
            ended = found or self._child(job, f"{job.task}")
            if found is None and not ended.failure and not ended.of("error"):
                self._remember(job, ended)
            self._take(job, left, ended, take)
            heard = {event["row"] for event in (*ended.of("result"), *ended.of("error")) if event["row"]}
            before, left = left, tuple(name for name in self._alive(left) if name not in heard)
            if left == before:  # nothing was heard of anybody, and nobody is to blame
                raise AssertionError(f"a child said nothing of its rows {', '.join(left)}")
        self._save(job.rows)

    def _take(
        self, job: Job, left: tuple[str, ...], ended: Ended, take: Callable[[Measured, Job, dict[str, Any]], None]
    ) -> None:
        hello = next(iter(ended.of("hello")), None)
        for name in left:
            one = self.rows()[name]
            one.started = one.started or now()
            one.hello = one.hello or hello
            one.exit_code = ended.exit_code
            one.stderr_tail = ended.stderr_tail or one.stderr_tail
        for event in ended.of("result"):
            take(self.rows()[event["row"]], job, event)
        for event in ended.of("error"):
            failure = Failure(status=Status(event["status"]), reason=event["reason"], traceback=event["traceback"])
            self._fail(left if event["row"] is None else (event["row"],), failure)
        if ended.failure is not None and not any(event["row"] is None for event in ended.of("error")):
            self._fail(left if ended.at is None else (ended.at,), ended.failure)

    def _fail(self, names: tuple[str, ...], failure: Failure) -> None:
        for name in names:
            one = self.rows()[name]
            if one.failure is None:
                one.failure = failure
                self.progress.note(f"  {name}: {failure.status}: {failure.reason}")
        self._save(names)

    def _child(self, job: Job, name: str) -> Ended:
        path = self.parts / f"{job.task}-{job.key}.job.json"
        job.write(path)

        def heard(event: dict[str, Any]) -> None:
            if event["event"] == "progress" and "done" in event:
                self.progress.detail(f"{event['row']}, {event['done']} of {event['of']} images")
            elif event["event"] in ("at", "progress"):
                self.progress.detail(event["row"])

        def line(text: str) -> None:
            if job.task == "train" and text.strip():
                self.progress.detail(text.strip())

        return run_child(
            job_command(path),
            log=self.out / "logs" / f"{name}-{job.key}.log",
            timeout=self.run.options.timeout,
            variables=children.variables(memory=job.task == "memory"),
            on_event=heard,
            on_line=line,
        )

    def _remember(self, job: Job, ended: Ended) -> None:
        content = json.dumps({"events": ended.events, "stderr_tail": ended.stderr_tail}).encode()
        write_whole(self.parts / f"{job.task}-{job.key}.done.json", content)
        if (kept := self._kept(job)) is not None:
            with contextlib.suppress(OSError):  # a full disk costs the cache, not the run
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_whole(kept, content)

    def _finished(self, job: Job) -> Ended | None:
        """What this very job said in an earlier attempt at this run, or in an earlier run."""
        kept = self._kept(job)
        for path in (self.parts / f"{job.task}-{job.key}.done.json", kept):
            try:
                content = json.loads(path.read_bytes()) if path is not None else None
            except (OSError, ValueError):
                continue
            if content is not None:
                if path == kept:
                    for name in job.rows:
                        self.rows()[name].kept.add(job.task)
                return Ended(events=content["events"], stderr_tail=content["stderr_tail"])
        return None

    def _kept(self, job: Job) -> Path | None:
        """Where a job's findings wait for later runs: what is the same whenever this machine makes it, so never a time."""
        if job.task == "speed" or job.options.device != "cpu" or self.run.options.fresh:
            return None
        return cache_folder() / "runs" / self._machine / f"{job.task}-{job.key}.json"

    @cached_property
    def _machine(self) -> str:
        return environment("cpu").machine

    def _take_quality(self, one: Measured, job: Job, said: dict[str, Any]) -> None:
        one.quality = said
        self.floors.update(said.get("floors", {}))

    def _take_memory(self, one: Measured, job: Job, said: dict[str, Any]) -> None:
        one.memory = said

    def _take_speed(self, one: Measured, job: Job, said: dict[str, Any]) -> None:
        one.speed[job.round] = said


def _failure_of(ended: Ended, row: str) -> Failure:
    for event in ended.of("error"):
        return Failure(status=Status(event["status"]), reason=event["reason"], traceback=event["traceback"])
    return ended.failure or Failure(status=Status.FAILED, reason=f"nothing was said of {row}")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Two runs in one folder would overwrite each other's records."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another run is working in {out}; wait for it, or choose another --out") from error
        yield
