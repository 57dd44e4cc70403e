"""Memory of a call on a CPU: to the byte, the same in every repeat, and what the plan lets expect."""

from __future__ import annotations

import gc

import pytest
import torch
from scripted import options

from varbench import load_pipeline
from varbench.engine.subjects import Ask, EngineSubject
from varbench.measure import memory
from varbench.measure.calls import Peaks, balanced_labels
from varbench.plan.cost import work

BATCH = 8
DEFAULT = options()
ROWS = ("full_var", "variant@d8", "variant@d2")


@pytest.fixture(scope="module")
def subject() -> EngineSubject:
    return subject_of("float32")


@pytest.fixture(scope="module")
def by_default() -> EngineSubject:
    return subject_of(DEFAULT.dtype)


def subject_of(dtype: str) -> EngineSubject:
    pipe = load_pipeline("tiny", random=True, dtype=dtype)
    made = EngineSubject(pipe=pipe, cfg=1.5, top_k=DEFAULT.top_k, top_p=DEFAULT.top_p)
    for row in ROWS:
        made.make(Ask(row=row, labels=(0,), seed=0))  # sets up what every row needs
    return made


def look(subject: EngineSubject, row: str, *, seed: int = 0, batch: int = BATCH) -> tuple[Peaks, int]:
    """Peaks, and the largest state that the call's own trace holds."""
    ask = Ask(row=row, labels=balanced_labels(batch, 10), seed=seed)
    made, peaks = memory.peaks(lambda: subject.make(ask), weights=subject.weight_bytes(row), device=torch.device("cpu"))
    assert made.trace is not None
    return peaks, max(made.trace.state_peak)


@pytest.mark.parametrize("row", ROWS)
def test_every_repeat_has_the_same_bytes_and_leaves_its_result_alone(subject: EngineSubject, row: str) -> None:
    first, _ = look(subject, row)
    held = torch.zeros(1 << 20)  # what lives besides is not the call's
    second, _ = look(subject, row, seed=1)
    del held
    gc.collect()
    assert (first.allocated, first.left) == (second.allocated, second.left)
    assert first.left is not None and first.left < 1 << 18


def test_a_smaller_state_is_a_smaller_peak_by_as_much(subject: EngineSubject) -> None:
    found = {row: look(subject, row) for row in ROWS}
    full, half, least = (found[row] for row in ROWS)
    assert full[0].allocated is not None and half[0].allocated is not None and least[0].allocated is not None
    assert least[0].allocated < half[0].allocated < full[0].allocated
    assert full[0].allocated - half[0].allocated == full[1] - half[1]


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("row", ROWS)
def test_the_plans_activations_are_within_a_sixth_of_the_measured(subject: EngineSubject, row: str) -> None:
    hold_to_plan(subject, row, batch=BATCH, dtype="float32")


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("row", ROWS)
def test_so_they_are_in_the_batch_and_type_of_a_run_of_tiny(by_default: EngineSubject, row: str) -> None:
    assert (DEFAULT.batch, DEFAULT.dtype) == (32, "bfloat16")
    hold_to_plan(by_default, row, batch=DEFAULT.batch, dtype=DEFAULT.dtype)


def hold_to_plan(subject: EngineSubject, row: str, *, batch: int, dtype: str) -> None:
    peaks, state = look(subject, row, batch=batch)
    assert peaks.allocated is not None
    measured = peaks.allocated - peaks.weights - state
    plan = subject.pipe.compile(row)[0]
    planned = work(plan, batch=batch, dtype=dtype, device="cpu", filtered=DEFAULT.filters).steps
    assert max(step.activations for step in planned) == pytest.approx(measured, rel=0.15)
    assert max(step.state_peak for step in planned) == state
