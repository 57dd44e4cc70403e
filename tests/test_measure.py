"""Measuring: the stop rule and the clock by replay, memory from outside, honesty checks, largest batch, machine identity."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from varbench import load_pipeline, rows
from varbench.engine.pipeline import Pipeline
from varbench.errors import WrongOutputError
from varbench.measure import environment, honesty, memory, nvml, speed
from varbench.measure.clock import CudaClock, Stop, WallClock, time_calls
from varbench.measure.harness import null_cost
from varbench.measure.largest import bisect, largest_by_plan
from varbench.plan.compiler import compile_plan
from varbench.plan.cost import work
from varbench.plan.owned import RowPolicies
from varbench.plan.presets import preset
from varbench.plan.trace import Trace, foreseen
from varbench.record import Status
from varbench.run.reasons import of_exception, of_exit

TINY = preset("tiny").spec
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load_pipeline("tiny")


def full(pipe: Pipeline) -> speed.Generation:
    return speed.Generation(pipe=pipe, row=rows.FULL, cfg=1.5, top_k=0, top_p=0.0)


class Replay:
    """A clock that ticks as it is told; each mark takes the next tick."""

    name = "replay"

    def __init__(self, ticks: Iterator[float]) -> None:
        self.now, self._ticks, self.settled = 0.0, ticks, 0

    def mark(self) -> float:
        self.now += next(self._ticks)
        return self.now

    def between(self, first: float, second: float) -> float:
        return second - first

    def settle(self) -> None:
        self.settled += 1


# Clock


def test_columns_end_where_the_call_marks_them() -> None:
    def call(mark: Any) -> None:
        mark("transformer")
        mark("with_decoder")

    clock = Replay(iter([0.0, 2.0, 1.0, 10.0, 4.0, 1.0]))
    found = time_calls(call, clock=clock, stop=Stop(count=2, seconds=0.0))
    assert found.seconds == {"transformer": (2.0, 4.0), "with_decoder": (3.0, 5.0)}
    assert clock.settled == 2  # before the batch of calls and after it, never between them


@pytest.mark.parametrize(("samples", "reached"), [([1.0] * 2, False), ([0.1] * 5, False), ([1.0] * 5, True)])
def test_stop_needs_both_count_and_time(samples: list[float], reached: bool) -> None:
    assert Stop(count=3, seconds=2.0).reached(samples) is reached


@pytest.fixture
def millisecond_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock on which a millisecond goes by each time somebody looks at it, and no other time."""
    looks = itertools.count()
    monkeypatch.setattr("varbench.measure.clock.time.perf_counter", lambda: next(looks) / 1000)


@pytest.mark.usefixtures("millisecond_a_look")
def test_short_calls_go_on_until_the_time_is_over() -> None:
    """A batch of five calls takes eleven looks, so one batch has the count and only the second has the 20 ms."""
    ended = time_calls(lambda mark: mark("end_to_end"), clock=WallClock(), stop=Stop(count=5, seconds=0.02))
    assert len(ended.wall) == 10
    assert sum(ended.wall) == pytest.approx(0.022)


@pytest.mark.usefixtures("millisecond_a_look")
def test_the_harness_costs_one_look_at_the_clock_for_each_mark() -> None:
    assert null_cost().value == pytest.approx(3 / 1000)


@gpu
def test_cuda_events_agree_with_the_wall_on_long_work() -> None:
    device = torch.device("cuda")
    x = torch.randn(8192, 8192, device=device)

    def call(mark: Any) -> None:
        for _ in range(10):
            x @ x
        mark("end")

    found = time_calls(call, clock=CudaClock(device), stop=Stop(count=3, seconds=0.0))
    assert sum(found.seconds["end"]) == pytest.approx(sum(found.wall), rel=0.2)


# Speed


def test_one_call_on_a_cpu_gives_columns_that_hold_each_other(pipe: Pipeline) -> None:
    timed = speed.Timed()
    speed.warm(full(pipe), batch=1, seed=0, timed=timed)
    speed.time_row(full(pipe), "latency", batch=1, stop=Stop(count=2, seconds=0.0), seed=0, timed=timed)
    columns = timed.columns["latency"]
    for transformer, decoded, whole in zip(
        *(columns[c] for c in ("transformer", "with_decoder", "end_to_end")), strict=True
    ):
        assert 0 < transformer < decoded < whole
    assert timed.first_call is not None


def test_the_per_scale_pass_has_a_time_for_each_step(pipe: Pipeline) -> None:
    found = speed.per_scale(full(pipe), batch=1, count=1, seed=0)
    assert len(found["seconds"]) == TINY.scales
    assert min(found["seconds"]) > 0


def test_labels_are_balanced_over_batches() -> None:
    made = [label for first in range(0, 40, 8) for label in speed.balanced_labels(8, 10, first=first)]
    assert all(made.count(label) == 4 for label in range(10))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 3, 32, 32), "4 images were asked for, and 3 came"),
        (torch.zeros(4, 3, 16, 16), "images have shape"),
        (torch.full((4, 3, 32, 32), torch.nan), "4 of 4 images hold NaN"),
    ],
)
def test_wrong_output_has_both_numbers(images: torch.Tensor, words: str) -> None:
    with pytest.raises(WrongOutputError, match=words):
        speed.check_images(images, batch=4, side=32)


# Memory


def test_views_of_one_storage_count_once() -> None:
    base = torch.zeros(100)
    assert memory.storage_bytes([base, base[10:], base.view(10, 10)]) == 400


def test_weights_are_those_of_the_modules(pipe: Pipeline) -> None:
    found = memory.weight_bytes(pipe)
    plan = compile_plan(TINY, RowPolicies(name=rows.FULL))
    assert found == pytest.approx(work(plan, batch=1, dtype="float32").weight_bytes, rel=0.02)
    assert memory.weight_bytes(pipe, "code@training_free/n4") > found, "the row runs on a second model"


def test_state_equals_the_plan_to_the_byte_and_is_seen_from_outside(pipe: Pipeline) -> None:
    made = full(pipe)
    found = memory.measure(made, batch=2, seed=0)
    output = found.pop("output")
    assert honesty.against_plan(output.plan, output.trace, batch=2, dtype="float32") == []
    assert honesty.against_plan(output.plan, output.trace, batch=3, dtype="float32") != []
    seen = memory.seen_from_outside(made, batch=2, seed=0)
    assert all(abs(live - planned) < 64 for live, planned in zip(seen.after_steps, seen.planned, strict=True))
    assert found["weights"] == memory.weight_bytes(pipe)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_resident_growth_covers_what_is_held(pipe: Pipeline) -> None:
    found = memory.measure(full(pipe), batch=8, seed=0)
    assert found["rss_growth"] > 0
    assert found["activations"] >= 0


def test_an_honest_row_is_found_honest(pipe: Pipeline) -> None:
    assert honesty.from_outside(full(pipe), batch=1, seed=0) == []


def test_what_a_call_hides_in_the_place_of_what_the_last_one_hid_is_seen(pipe: Pipeline) -> None:
    hidden: list[torch.Tensor] = []

    def hiding(*arguments: Any, observer: Any, **options: Any) -> Any:
        hidden.clear()

        def observe(when: str, step: int) -> None:
            if when == "start":
                hidden.append(torch.zeros(1 << 20))
            observer(when, step)

        return full(pipe)(*arguments, observer=observe, **options)

    hiding.pipe = pipe  # type: ignore[attr-defined]
    (found,) = honesty.from_outside(hiding, batch=1, seed=0)  # type: ignore[arg-type]
    assert "bytes live after step 6 that the plan does not have" in found


def test_a_step_that_did_not_run_as_planned_is_named() -> None:
    plan = compile_plan(TINY, RowPolicies(name=rows.FULL))
    planned = foreseen(plan, batch=1, dtype="float32")
    steps = list(planned.steps)
    steps[2] = steps[2]._replace(calls=steps[2].calls[:1])
    (found,) = honesty.against_plan(plan, Trace(steps=tuple(steps)), batch=1, dtype="float32")
    assert found == f"step 3 ran 1 layers, and the plan has {TINY.depth}"


def test_global_state_is_noticed_and_put_back() -> None:
    before = honesty.global_state()
    torch.set_default_dtype(torch.float64)
    torch.rand(1)
    assert before.changed() == ["torch default dtype", "torch random state"]
    before.restore()
    assert before.changed() == []


# Largest batch


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 100, 1000])
def test_bisection_finds_the_largest(limit: int) -> None:
    assert bisect(lambda batch: batch <= limit, close=0.0) == limit
    assert limit * 0.94 - 1 <= bisect(lambda batch: batch <= limit) <= limit


def test_the_largest_batch_by_plan_grows_with_memory_and_never_takes_more_than_its_share() -> None:
    plan = compile_plan(TINY, RowPolicies(name=rows.FULL))
    small, large = (largest_by_plan(plan, dtype="float32", free=free << 30) for free in (1, 4))
    assert 0 < small.batch < large.batch
    counted = work(plan, batch=large.batch, dtype="float32")
    assert counted.weight_bytes + counted.state_peak <= large.limit_bytes == round(0.6 * (4 << 30))


# Reasons


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), Status.OUT_OF_MEMORY_HOST),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
            Status.OUT_OF_MEMORY_HOST,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Status.OUT_OF_MEMORY_DEVICE),
        (WrongOutputError("2 images were asked for, and 1 came"), Status.WRONG_OUTPUT),
        (RuntimeError("shapes do not match"), Status.FAILED),
    ],
)
def test_exceptions_are_told_apart(error: Exception, status: Status) -> None:
    assert of_exception(error).status is status


@pytest.mark.parametrize(
    ("code", "kills", "status"),
    [
        (-9, 1, Status.OUT_OF_MEMORY_HOST),
        (-9, None, Status.OUT_OF_MEMORY_HOST),
        (-9, 0, Status.CRASHED),
        (-11, 0, Status.CRASHED),
        (3, 0, Status.CRASHED),
    ],
)
def test_a_kill_is_blamed_on_memory_only_where_the_kernel_does_not_deny_it(
    code: int, kills: int | None, status: Status
) -> None:
    assert of_exit(code, stderr="", oom_kills=kills).status is status


# Machine


def test_one_machine_has_one_name() -> None:
    first, second = environment.environment("cpu"), environment.environment("cpu")
    assert first.machine == second.machine
    assert (
        first.versions["torch"] == torch.__version__.partition("+")[0] or first.versions["torch"] == torch.__version__
    )


def test_without_nvml_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(nvml.NvmlError, match="not installed"):
        nvml.board(uuid=None, pci=None)


def fake_nvml(*, processes: list[Any]) -> types.ModuleType:
    module = types.ModuleType("pynvml")

    class Error(Exception):
        pass

    def by_uuid(uuid: str) -> str:
        if uuid != "GPU-abc":
            raise Error("not found")
        return "handle"

    names = {
        "NVMLError": Error, "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetHandleByPciBusId": lambda pci: "by pci",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(used=9000),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: processes,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 2500,
    }  # fmt: skip
    for name, value in names.items():
        setattr(module, name, value)
    return module


def test_nvml_matches_by_identity_and_admits_what_a_container_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.SimpleNamespace(pid=5, usedGpuMemory=100)
    mine = types.SimpleNamespace(pid=7, usedGpuMemory=300)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(processes=[other, mine]))
    assert nvml.memory(uuid="abc", pci=None, pid=7) == (300, 9000)
    assert nvml.memory(uuid="GPU-abc", pci=None, pid=8) == (None, 9000)
    assert nvml.foreign_processes(uuid="abc", pci=None, pid=7) == (5,)
    assert nvml.energy_joules(uuid="abc", pci=None) == 2.5
    with pytest.raises(nvml.NvmlError, match="UUID GPU-xyz"):
        nvml.memory(uuid="GPU-xyz", pci=None, pid=7)
