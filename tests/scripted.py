"""Children that answer from memory: what is tested is what a run makes of their answers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from varbench.base.display import Display
from varbench.measure import pairs, strain
from varbench.measure.calls import Marks, Outside, Peaks, Reply, Request
from varbench.measure.environment import environment
from varbench.plan.cost import work
from varbench.plan.state import state_over_time
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace, foreseen
from varbench.record import Status
from varbench.record.failure import Failure, RowError
from varbench.record.options import asked
from varbench.rows.manager import manager
from varbench.rows.parts import parse
from varbench.run import children
from varbench.run.children import ChildEndedError
from varbench.run.conduct import Conduct
from varbench.run.defaults import resolve
from varbench.run.messages import Job, Ready
from varbench.run.prepare import Run, prepare
from varbench.run.resume import complete_records
from varbench.run.tasks.resolving import code_of, resolved


def options(**given: Any) -> Any:
    (one,) = resolve(Namespace(**{**dict.fromkeys(asked_names()), "config": None, "plugins": "variant", **given}))
    return one


def asked_names() -> list[str]:
    from varbench.record.options import Options

    return list(asked(Options))


@dataclass
class Script:
    """How the children of a run behave."""

    fails: dict[str, str] = field(default_factory=dict)
    """By row: the status that its process ends with, `raise` for a row that fails alone, or `interrupt`."""
    never_loads: str | None = None
    """The plugin whose rows a child ends with that loads them."""
    digests: dict[str, str] = field(default_factory=dict)
    """Plans that a child says it compiled."""
    job: str | None = None
    """What children say they were told to do, where it is something else."""
    of: str | None = None
    """The row of whose processes alone this is true."""
    says: dict[str, Any] = field(default_factory=dict)
    """Parts of `Ready` in the place of what is true."""
    traces: dict[str, str] = field(default_factory=dict)
    """By row: what a child says that a call left."""
    unsaid: bool = False
    """Children leave out which plans they compiled."""
    started: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Tasks and rows of the children, in order."""
    requests: list[Request] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of a call, by row; 1 for the others."""
    alone: float | None = None
    """Seconds of the full model in a process of its own, where they are others."""
    alone_at: int | None = None
    """The batch where they are; None for all."""
    disturbed: tuple[int, ...] | None = None
    """Other processes on the GPU, as children see them."""
    remembers: bool = False
    """Whether children have the answer to what they were asked before, but for the full model alone."""
    cold: float = 1.0
    """How much longer the first two calls of a process take."""
    clock: float = 0.0
    """What children and judge take the time from."""


class ScriptedChild:
    pid = 0  # of no process, whose load would count
    stderr_tail = "last words"

    def __init__(self, job: Job, script: Script) -> None:
        self.job, self.script = job, script
        self.exit_code: int | None = None
        self.made = 0
        script.started.append((job.task, job.rows))

    def __enter__(self) -> ScriptedChild:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        self.exit_code = -11 if self.exit_code is None and self.script.fails else 0

    def receive(self, kind: Any) -> Any:
        if self.job.task == "resolving":
            return resolved(self.job, manager())
        if self.script.never_loads in {part.plugin for row in self.job.rows for part in map(parse, row.split("+"))}:
            self.exit_code = -11
            raise ChildEndedError(Failure(status=Status.CRASHED, reason="while it loads"), exit_code=self.exit_code)
        plans = {name: plan.digest for name, plan in self.plans.items()}
        return Ready(
            job=(self.script.job if self.script.of in (None, *self.job.rows[:1]) else None) or self.job.digest,
            environment=environment("cpu"),
            weights={},
            parameters={"main": 10},
            plans={} if self.script.unsaid else {**plans, **self.script.digests},
            code=replace(code_of(map(manager().info, manager().names())), **self.script.says),
            disturbed=self.script.disturbed,
        )

    @cached_property
    def plans(self) -> dict[str, Plan]:
        return {row.name: row.plan for row in resolved(_all(self.job), manager()).rows if row.plan}

    def _trace(self, request: Request) -> Trace | None:
        plan = self.plans.get(request.row)
        return plan and foreseen(plan, batch=len(request.labels), dtype=self.job.options.dtype)

    def tell(self, request: Request) -> None:
        self.told = request

    def reply_to(self, request: Request) -> Reply:
        assert request == self.told
        return self.make(request)

    def make(self, request: Request) -> Reply:
        known = self.script.remembers and self.job.rows != ("full_var",) and request in self.script.requests
        self.script.requests.append(request)
        how = self.script.fails.get(request.row)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "raise":
            raise RowError(Failure(status=Status.FAILED, reason="as told"))
        if how is not None:
            self.end()
            raise ChildEndedError(
                Failure(status=Status(how), reason="as told"), exit_code=self.exit_code, stderr_tail=self.stderr_tail
            )
        tokens = f"{request.row} {request.seed} {request.first} {request.labels}"
        reply = Reply(row=request.row, images_sha256=tokens, tokens_sha256=tokens)
        if request.look == "memory":
            return replace(reply, **self._memory(request))
        if request.look == "outside":
            return replace(reply, outside=Outside(after_steps=self._live(request), left=0))
        alone = self.script.alone if self.job.rows == ("full_var",) else None
        alone = alone if self.script.alone_at in (None, len(request.labels)) else None
        took = (alone or self.script.seconds.get(request.row, 1.0)) * (1 + 0.001 * (len(self.script.requests) % 3))
        took *= self.script.cold if self.made < 2 else 1.0
        took *= 0.1 if known else 1.0
        self.made += 1
        began = self.script.clock
        self.script.clock += took
        trace = self._trace(request)
        return replace(
            reply,
            trace_sha256=self.script.traces.get(request.row, trace and trace.digest),
            marks=Marks(
                clock="perf_counter", starts=(0.0,), logits=(0.8 * took,), ends=(0.9 * took,), decoded=0.95 * took, asked=began,
                began=began, ended=self.script.clock,
            ),
        )  # fmt: skip

    def _memory(self, request: Request) -> dict[str, Any]:
        plan = self.plans[request.row]
        states = list(state_over_time(plan, batch=len(request.labels), dtype=self.job.options.dtype))
        planned = work(plan, batch=len(request.labels), dtype=self.job.options.dtype, device="cpu", filtered=False)
        needed = max(step.activations for step in planned.steps)
        peaks = Peaks(
            weights=5, allocated=5 + max(p for p, _ in states) + needed, reserved=None, left=0, resident=9, nvml_process=None,
            nvml_board=None,
        )  # fmt: skip
        return {"peaks": peaks, "trace": self._trace(request), "kernel": "k"}

    def _live(self, request: Request) -> tuple[int, ...]:
        return (0,) * len(self.plans[request.row].steps) if request.row in self.plans else ()


def _all(job: Job) -> Job:
    return replace(job, task="resolving", options=replace(job.options, plugins=",".join(job.rows), study=()))


@contextmanager
def scripted(monkeypatch: Any, **how: Any) -> Iterator[Script]:
    """While this lasts, children are scripted."""
    script = Script(**how)
    monkeypatch.setattr(pairs, "time", SimpleNamespace(monotonic=lambda: script.clock))
    monkeypatch.setattr(children, "start", lambda job, **more: ScriptedChild(job, script))
    yield script


def a_run(out: Path, **given: Any) -> Run:
    chosen = options(**{"weights": "random", "batch": 2, "dtype": "float32", "rounds": 2, "budget": 0.0, **given})
    return replace(prepare(chosen, name=out.name), available_memory=1 << 30)


def conduct(run: Run, out: Path) -> Conduct:
    unseen = strain.Quiet(read=lambda: None)
    return Conduct(run=run, out=out, display=Display({"speed": 1}), done=complete_records(run, out), quiet=unseen)
