"""`check`: every promise that a method makes by entering the table, held against it one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from varbench.check import guided_branches, lessons, parts_of_ffn, sameness, tampering, twins, work
from varbench.check import held_memory as memory
from varbench.check.bench import Bench, given, installed
from varbench.check.decided_ways import decided_as_declared
from varbench.check.host_looks import asks_nothing_of_the_host
from varbench.check.small_model import SPEC
from varbench.check.subject import PlannedRow, UnderTest, under_test
from varbench.check.untouched import Originals
from varbench.errors import UserError, did_you_mean
from varbench.measure.process_state import global_state, restored
from varbench.spec import ModelSpec

OfPlanned = Callable[[PlannedRow], Iterator[str]]
OfRow = Callable[[UnderTest], Iterator[str]]
OfMethod = Callable[[Sequence[UnderTest]], Iterator[str]]

OnChecked = Callable[[str, str, bool, float], None]
"""Is told a row, an invariant that was checked on it, whether it is kept, and the seconds that it took."""

OF_ANSWERS: tuple[OfPlanned, ...] = (sameness.picks_are_places, sameness.inputs_untouched)
"""Asked first, since wrong answers can stop the engine."""

OF_PLANNED: tuple[OfPlanned, ...] = (
    sameness.plan_stable,
    work.trace_equals_plan,
    sameness.kept_is_what_is_read,
    sameness.attention_told_was_paid,
    sameness.picked_is_what_is_computed,
    asks_nothing_of_the_host,
    parts_of_ffn.chosen_experts_are_computed,
    decided_as_declared,
    work.weights_equal_plan,
    sameness.tokens_are_drawn_from_logits,
    sameness.neutral_equals_full,
    sameness.teacher_equals_cached,
    guided_branches.guided_as_planned,
    guided_branches.unlabelled_equals_teacher,
    tampering.weights_untouched,
    work.no_speedup_without_less_work,
)
"""Asked of every row that the engine runs."""

OF_ROW: tuple[OfRow, ...] = (
    sameness.images_in_range,
    work.measured_flops_equal_plan,
    work.products_in_type,
    sameness.seeds_and_labels_matter,
    sameness.no_memoised_repeat,
    sameness.batch_invariance,
    lessons.examples_are_their_numbers_own,
    memory.state_bytes_reachable,
    memory.released_memory_freed,
    tampering.no_global_state_change,
    work.repeat_as_slow_as_first,
    sameness.deterministic,
)
"""Asked of every row, also of one that replaces the loop: at the end, for a repeat of the first generation, after all that
came between."""

OF_METHOD: tuple[OfMethod, ...] = (
    memory.the_same_unwatched,
    work.work_falls_as_knob_tightens,
    sameness.schedule_repeats,
    lessons.own_loss_teaches,
    tampering.nothing_replaced,
)
"""Asked once, after all rows ran."""

OF_EVERY_SETTING: tuple[OfMethod, ...] = (
    work.work_falls_as_knob_tightens,
    sameness.schedule_repeats,
    lessons.own_loss_teaches,
)
"""Those of them that look at settings whose plan another row ran already."""

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
    promises = {check.__name__: _sentence(check.__doc__) for check in (*OF_ANSWERS, *OF_PLANNED, *OF_ROW, *OF_METHOD)}
    return {RUNS: "The plugin can be imported, compiled at every setting that it names, and run.", **promises}


def _sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def check(
    method: str | object,
    *,
    name: str | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    model: ModelSpec = SPEC,
    progress: OnChecked | None = None,
) -> list[Finding]:
    """Broken promises of a method; an empty list is a pass.

    `method` is a row (`my_method@half`), the name of an installed plugin (all its settings), or a module or object with the
    hooks, which goes by `name`. `only` and `without` choose among the invariants. `progress` is told what was
    checked.
    """
    for unknown in {*without, *(only or ())} - invariants().keys():
        raise UserError(f"no invariant {unknown!r}.{did_you_mean(unknown, invariants())}")
    left_out = frozenset(without) | (invariants().keys() - set(only) if only is not None else set())
    originals = Originals()
    with restored():
        # Threads beyond one only get in each other's way on a model this small.
        torch.set_num_threads(1)
        try:
            if isinstance(method, str):
                text, bench = method, installed(model)
            else:
                text = name or str(getattr(method, "__name__", "method")).rpartition(".")[2]
                bench = given(model, text, method)
            return list(_Check(bench, text, left_out, progress or _silent, originals).findings())
        finally:
            originals.restore()


def _silent(row: str, invariant: str, kept: bool, seconds: float) -> None:
    pass


class _Check:
    def __init__(
        self, bench: Bench, text: str, without: frozenset[str], progress: OnChecked, originals: Originals
    ) -> None:
        self._originals = originals
        self._bench, self._text, self._without, self._progress = bench, text, without, progress
        # Held here, where a plugin that is imported later does not find them.
        self._of_answers, self._of_planned, self._of_rows = OF_ANSWERS, OF_PLANNED, OF_ROW
        self._of_methods = OF_METHOD

    def findings(self) -> Iterator[Finding]:
        yield from self._of_all()
        name = tampering.nothing_replaced.__name__
        if name not in self._without:
            for change in self._originals.changes():
                yield Finding(invariant=name, row=self._text, message=f"{change} was replaced since the check began")

    def _of_all(self) -> Iterator[Finding]:
        subjects: list[UnderTest] = []
        for plugin in _plugins(self._text):
            self._bench.manager.plugin(plugin)
        try:
            subjects += [under_test(self._bench, row) for row in self._bench.expand(self._text)]
        except Exception as error:
            yield from self._failed(RUNS, self._text, error)
        yield from self._changed_by_importing()
        if not subjects:
            return
        ran = []
        for subject in twins.distinct(subjects):
            found = list(self._of_row(subject))
            yield from found
            if not any(finding.invariant == RUNS for finding in found):
                ran.append(subject)
        for check in self._of_methods:
            those = subjects if check in OF_EVERY_SETTING else ran
            yield from self._asked(check.__name__, self._text, check, those)

    def _changed_by_importing(self) -> Iterator[Finding]:
        """Global state is put back before rows run, so that one who changed it is not blamed for all that follows."""
        now = global_state()
        name = tampering.no_global_state_change.__name__
        if name not in self._without:
            for change in self._bench.before.changes(now):
                yield Finding(invariant=name, row=self._text, message=f"after importing and compiling it: {change}")
        self._bench.before.restore()

    def _of_row(self, subject: UnderTest) -> Iterator[Finding]:
        row, planned = subject.row.name, isinstance(subject, PlannedRow)
        for check in self._of_answers if planned else ():
            yield from self._asked(check.__name__, row, check, subject)
        if not (yield from self._ran(subject)):
            return
        for check in (*(self._of_planned if planned else ()), *self._of_rows):
            yield from self._asked(check.__name__, row, check, subject)

    def _ran(self, subject: UnderTest) -> Generator[Finding, None, bool]:
        began, ran = perf_counter(), True
        try:
            _ = subject.first
        except Exception as error:
            ran = False
            yield from self._failed(RUNS, subject.row.name, error)
        if RUNS not in self._without:
            self._progress(subject.row.name, RUNS, ran, perf_counter() - began)
        return ran

    def _asked(self, name: str, row: str, check: Callable[..., Iterator[str]], *arguments: object) -> Iterator[Finding]:
        if name in self._without:
            return
        began, broken = perf_counter(), False
        try:
            for message in check(*arguments):
                broken = True
                yield Finding(invariant=name, row=row, message=message)
        except Exception as error:
            broken = True
            yield from self._failed(name, row, error)
        self._progress(row, name, not broken, perf_counter() - began)

    def _failed(self, invariant: str, row: str, error: Exception) -> Iterator[Finding]:
        if invariant not in self._without:
            message = " ".join(str(error).split())
            yield Finding(invariant=invariant, row=row, message=f"failed with {type(error).__name__}: {message}")


def _plugins(text: str) -> list[str]:
    return [re.split(r"[@:]", part)[0] for row in text.split(",") for part in row.split("+")]
