"""`check`: every promise that a method makes by entering the table, held against it one by one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

import varbench.compare
import varbench.measure
import varbench.quality
import varbench.records  # noqa: F401  what may be tampered with is loaded before the plugin is
from varbench.errors import UserError, did_you_mean
from varbench.spec import ModelSpec
from varbench.testing import memory, sameness, tampering, work
from varbench.testing.global_state import GlobalState, restored
from varbench.testing.model import SPEC
from varbench.testing.subject import Bench, Subject, given, installed
from varbench.testing.untouched import Originals

OfRow = Callable[[Subject], Iterator[str]]
OfMethod = Callable[[Sequence[Subject]], Iterator[str]]

OF_ROW: tuple[OfRow, ...] = (
    sameness.picks_are_places,
    sameness.inputs_untouched,
    sameness.images_in_range,
    sameness.plan_stable,
    work.trace_equals_plan,
    work.measured_flops_equal_plan,
    sameness.neutral_equals_full,
    sameness.deterministic,
    sameness.seeds_and_labels_matter,
    sameness.no_memoised_repeat,
    sameness.batch_invariance,
    sameness.teacher_equals_cached,
    memory.state_bytes_reachable,
    memory.released_memory_freed,
    tampering.no_global_state_change,
    tampering.weights_untouched,
    work.no_speedup_without_less_work,
    work.repeat_as_slow_as_first,
)
"""Asked of every row that runs."""

OF_METHOD: tuple[OfMethod, ...] = (
    work.work_falls_as_knob_tightens,
    tampering.sampler_untouched,
    tampering.evaluator_untouched,
    tampering.engine_untouched,
)
"""Asked once, after all rows ran."""

RUNS = "runs"
"""Before anything else: the plugin can be imported, compiled at every setting, and run."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A broken promise."""

    invariant: str
    row: str
    message: str

    def __str__(self) -> str:
        return f"{self.row}: {self.invariant}: {self.message}"


def invariants() -> dict[str, str]:
    """Every invariant's name, with its promise in a sentence."""
    promises = {check.__name__: _sentence(check.__doc__) for check in (*OF_ROW, *OF_METHOD)}
    return {RUNS: "The plugin can be imported, compiled at every setting that it names, and run.", **promises}


def _sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def check(
    method: str | object,
    *,
    name: str = "method",
    without: Collection[str] = (),
    model: ModelSpec = SPEC,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Broken promises of a method; an empty list is a pass.

    `method` is a row (`variant@d4`), the name of an installed plugin (all its settings), or a module or object with the
    hooks, which is then called `name`. `without` leaves invariants out. `progress` is told what is being checked.
    """
    for unwanted in without:
        if unwanted not in invariants():
            raise UserError(f"no invariant {unwanted!r}.{did_you_mean(unwanted, invariants())}")
    originals = Originals()
    with restored():
        # Threads beyond one only get in each other's way on a model this small.
        torch.set_num_threads(1)
        try:
            before = GlobalState()
            bench = installed(model) if isinstance(method, str) else given(model, name, method)
            text = method if isinstance(method, str) else name
            return list(_Check(bench, text, frozenset(without), before, progress or _silent).findings())
        finally:
            originals.restore()


def _silent(_: str) -> None:
    pass


class _Check:
    def __init__(
        self, bench: Bench, text: str, without: frozenset[str], before: GlobalState, progress: Callable[[str], None]
    ) -> None:
        self._bench, self._text, self._without, self._progress = bench, text, without, progress
        self._before = before

    def findings(self) -> Iterator[Finding]:
        subjects: list[Subject] = []
        for plugin in _plugins(self._text):
            self._bench.manager.plugin(plugin)
        try:
            subjects = [Subject(self._bench, row) for row in self._bench.expand(self._text)]
        except Exception as error:
            yield from self._failed(RUNS, self._text, error)
        yield from self._changed_by_importing()
        if not subjects:
            return
        ran = []
        for subject in _distinct(subjects):
            found = list(self._of_row(subject))
            yield from found
            if not any(finding.invariant == RUNS for finding in found):
                ran.append(subject)
        for check in OF_METHOD:
            if check.__name__ not in self._without:
                those = subjects if check is work.work_falls_as_knob_tightens else ran
                yield from self._asked(check.__name__, self._text, check, those)

    def _changed_by_importing(self) -> Iterator[Finding]:
        """Global state is put back before rows run, so that one who changed it is not blamed for all that follows."""
        now = GlobalState()
        name = tampering.no_global_state_change.__name__
        if name not in self._without:
            for change in self._before.changes(now):
                yield Finding(invariant=name, row=self._text, message=f"after importing and compiling it: {change}")
        self._before.restore()

    def _of_row(self, subject: Subject) -> Iterator[Finding]:
        row = subject.row.name
        for check in OF_ROW:
            if check.__name__ in self._without:
                continue
            began = time.perf_counter()
            found = list(self._asked(check.__name__, row, check, subject))
            self._progress(f"{row}: {check.__name__} {'BROKEN' if found else 'ok'} ({time.perf_counter() - began:.2f} s)")
            yield from found
            if check is sameness.images_in_range and (yield from self._cannot_run(subject)):
                return

    def _cannot_run(self, subject: Subject) -> Iterator[Finding]:
        try:
            _ = subject.first
        except Exception as error:
            yield from self._failed(RUNS, subject.row.name, error)
            return True
        return False

    def _asked(self, name: str, row: str, check: Callable[..., Iterator[str]], *arguments: object) -> Iterator[Finding]:
        try:
            for message in check(*arguments):
                yield Finding(invariant=name, row=row, message=message)
        except Exception as error:
            yield from self._failed(name, row, error)

    def _failed(self, invariant: str, row: str, error: Exception) -> Iterator[Finding]:
        if invariant not in self._without:
            message = " ".join(str(error).split())
            yield Finding(invariant=invariant, row=row, message=f"failed with {type(error).__name__}: {message}")


def _plugins(text: str) -> list[str]:
    return [re.split(r"[@:]", part)[0] for row in text.split(",") for part in row.split("+")]


def _distinct(subjects: Sequence[Subject]) -> Iterator[Subject]:
    """Rows that execute different plans; recipes differ in weights, which here are random. Rows that pick by content all run."""
    seen: set[str] = set()
    for subject in subjects:
        if subject.plan.picks or subject.plan.digest not in seen:
            yield subject
        seen.add(subject.plan.digest)


