"""Measuring: the stop rule and the clock by replay, memory from outside, honesty checks, largest batch, machine identity."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from varbench import load_pipeline, rows
from varbench.engine.generate import Observer
from varbench.engine.pipeline import Pipeline
from varbench.engine.storage import storage_bytes
from varbench.engine.subjects import Answer, Ask, EngineSubject, Subject
from varbench.errors import WrongOutputError
from varbench.measure import board_state, environment, honesty, memory, nvml, process_state, timed_call
from varbench.measure.calls import Reply, Request, Times, balanced_labels
from varbench.measure.clock import CudaClock
from varbench.measure.harness import Nothing, null_cost
from varbench.measure.largest import bisect, largest_by_plan
from varbench.plan.compiler import compile_plan
from varbench.plan.cost import work
from varbench.plan.owned import RowPolicies
from varbench.plan.presets import preset
from varbench.plan.state import beside_state, state_over_time
from varbench.plan.trace import Trace, foreseen
from varbench.record import Status
from varbench.run.reasons import of_exception, of_exit
from varbench.run.tasks import making

TINY = preset("tiny").spec
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load_pipeline("tiny")


# Clock


def test_columns_end_where_the_call_marks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock on which a second goes by at each look: two steps, images, and the same in bytes."""
    looks, settled = itertools.count(), []

    class Ticking:
        name = "ticks"

        def mark(self) -> float:
            return float(next(looks))

        def between(self, first: float, second: float) -> float:
            return second - first

        def settle(self) -> None:
            settled.append(next(looks))

    class TwoSteps(Nothing):
        def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer:
            assert observer is not None
            for step in range(2):
                for moment in ("start", "logits", "end"):
                    observer(moment, step)
            return Answer(images=self._images, tokens=None, trace=None)

    monkeypatch.setattr(timed_call, "clock_for", lambda device: Ticking())
    _, _, marks = timed_call.timed(TwoSteps("cpu"), ask(1))  # type: ignore[arg-type]
    times = Times.between(marks)
    # Marks: 1 before the call, 2 3 4 and 5 6 7 in its steps, 8 when there are images. What goes by before a step is its own.
    assert (times.transformer, times.loop, times.with_decoder, times.steps) == (2.0, 6.0, 7.0, (3.0, 3.0))
    assert len(settled) == 2  # before the call and after it, never within


def test_the_harness_costs_microseconds_of_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr("varbench.measure.clock.time.perf_counter", lambda: next(looks) / 1000)
    assert null_cost().value == pytest.approx(4 / 1000)  # start, logits, end, and images


@gpu
def test_cuda_events_agree_with_the_wall_on_long_work() -> None:
    device = torch.device("cuda")
    x, clock = torch.randn(8192, 8192, device=device), CudaClock(device)
    clock.settle()
    began, start = time.perf_counter(), clock.mark()
    for _ in range(30):
        x @ x
    end = clock.mark()
    clock.settle()
    assert clock.between(start, end) == pytest.approx(time.perf_counter() - began, rel=0.2)


# Speed


def subject_of(pipe: Pipeline) -> EngineSubject:
    return EngineSubject(pipe=pipe, cfg=1.5, top_k=0, top_p=0.0)


def ask(batch: int, *, row: str = rows.FULL, seed: int = 0) -> Ask:
    return Ask(row=row, labels=balanced_labels(batch, TINY.classes), seed=seed)


def test_one_call_gives_columns_that_hold_each_other_and_steps_that_add_up(pipe: Pipeline) -> None:
    timed_call.timed(subject_of(pipe), ask(4))  # compiles the plan
    _, images, marks = timed_call.timed(subject_of(pipe), ask(4))
    times = Times.between(marks)
    assert images.shape == (4, 3, 32, 32)
    assert times.transformer is not None and times.loop is not None
    assert 0 < times.transformer < times.loop < times.with_decoder < times.end_to_end
    assert len(times.steps) == TINY.scales and min(times.steps) > 0
    assert sum(times.steps) == pytest.approx(times.loop)
    assert times.ended - times.began == pytest.approx(times.end_to_end)


def test_labels_are_balanced_over_batches() -> None:
    made = [label for first in range(0, 40, 8) for label in balanced_labels(8, 10, first=first)]
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
        timed_call.check_images(images, batch=4, side=32)


# Memory


def test_views_of_one_storage_count_once() -> None:
    base = torch.zeros(100)
    assert storage_bytes([base, base[10:], base.view(10, 10)]) == 400


def test_weights_are_those_of_the_modules(pipe: Pipeline) -> None:
    found = subject_of(pipe).weight_bytes(rows.FULL)
    plan = compile_plan(TINY, RowPolicies(name=rows.FULL))
    assert found == pytest.approx(work(plan, batch=1, dtype="float32").weight_bytes, rel=0.02)
    assert subject_of(pipe).weight_bytes("code@training_free/n4") > found, "the row runs on a second model"


def test_a_look_at_memory_and_kernels_loads_no_compiler() -> None:
    """Which would take longer than the look, and count as memory that the call took."""
    look = (
        "import sys, torch\n"
        "from varbench.engine.kernel import attention_kernel\n"
        "from varbench.measure import memory\n"
        "call = lambda: torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))\n"
        "attention_kernel(call)\n"
        "_, seen = memory.peaks(call, weights=0, device=torch.device('cpu'))\n"
        "assert seen.allocated == 3 * 64 * 64 * 4, seen\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    looked = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert looked.returncode == 0, looked.stderr


def test_memory_is_the_same_to_the_byte_and_holds_what_the_plan_keeps(pipe: Pipeline) -> None:
    """The allocator's peak: of less depth it is less, and it repeats, which resident memory does not."""
    subject = subject_of(pipe)
    peaks = {}
    for row in (rows.FULL, "variant@untrained/d8", "variant@untrained/d2"):
        make = functools.partial(subject.make, ask(4, row=row))
        make()  # what is set up once
        found = [memory.peaks(make, weights=1000, device=subject.device) for _ in "ab"]
        assert found[0][1].allocated == found[1][1].allocated
        assert found[0][0].trace is not None and found[0][1].allocated is not None
        peaks[row] = found[0][1].allocated - 1000
        assert peaks[row] > max(found[0][0].trace.state_peak)
    assert peaks[rows.FULL] > peaks["variant@untrained/d8"] > peaks["variant@untrained/d2"]


def test_state_equals_the_plan_to_the_byte_and_is_seen_from_outside(pipe: Pipeline) -> None:
    plan, _ = pipe.compile(rows.FULL)
    made, seen = memory.seen_from_outside(subject_of(pipe), ask(2))
    assert made.trace is not None
    assert honesty.against_plan(plan, made.trace, batch=2, dtype="float32") == []
    assert honesty.against_plan(plan, made.trace, batch=3, dtype="float32") != []
    assert honesty.undeclared(seen.after_steps, plan, batch=2, dtype="float32") is None
    more = dataclasses.replace(seen, after_steps=tuple(live + (1 << 19) for live in seen.after_steps))
    assert "that the plan does not have" in (honesty.undeclared(more.after_steps, plan, batch=2, dtype="float32") or "")


def replies(subject: Subject, row: str = rows.FULL) -> list[Reply]:
    return [making.answer(subject, Request(row=row, labels=(0,), seed=seed, look="outside")) for seed in (0, 0, 1)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row", ["full_var", "variant@d2", "code@training_free/n4", "guidance@from4"])
def test_what_lives_between_steps_of_tiny_is_what_its_plan_has(row: str, dtype: str) -> None:
    """Of a whole run's size: a part that grows with the batch must not hide below what is too small to be told of."""
    subject = EngineSubject(pipe=load_pipeline("tiny", dtype=dtype), cfg=1.5, top_k=0, top_p=0.0)
    plan, _ = subject.pipe.compile(row)
    given = Request(row=row, labels=tuple(range(8)), seed=0, look="outside")
    _, equal = (making.answer(subject, given) for _ in range(2))
    assert equal.outside is not None
    planned = [
        after + beside
        for (_, after), beside in zip(
            state_over_time(plan, batch=8, dtype=dtype), beside_state(plan, batch=8, dtype=dtype), strict=True
        )
    ]
    assert [live - wanted for live, wanted in zip(equal.outside.after_steps, planned, strict=True)] == [0] * len(
        planned
    )


def test_an_honest_row_is_found_honest(pipe: Pipeline) -> None:
    plan, _ = pipe.compile(rows.FULL)
    assert honesty.across_calls(replies(subject_of(pipe)), plan, batch=1, dtype="float32") == []


def test_what_a_call_hides_in_the_place_of_what_the_last_one_hid_is_seen(pipe: Pipeline) -> None:
    hidden: list[torch.Tensor] = []

    class Hiding(EngineSubject):
        def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer:
            hidden.clear()

            def observe(moment: str, step: int) -> None:
                if moment == "start":
                    hidden.append(torch.zeros(1 << 20))
                if observer is not None:
                    observer(moment, step)

            return super().make(ask, observer=observe)

    plan, _ = pipe.compile(rows.FULL)
    found = honesty.across_calls(
        replies(Hiding(pipe=pipe, cfg=1.5, top_k=0, top_p=0.0)), plan, batch=1, dtype="float32"
    )
    assert any("bytes live after step 6 that the plan does not have" in text for text in found)


def test_a_step_that_did_not_run_as_planned_is_named() -> None:
    plan = compile_plan(TINY, RowPolicies(name=rows.FULL))
    planned = foreseen(plan, batch=1, dtype="float32")
    steps = list(planned.steps)
    steps[2] = steps[2]._replace(calls=steps[2].calls[:1])
    (found,) = honesty.against_plan(plan, Trace(steps=tuple(steps)), batch=1, dtype="float32")
    assert found == f"step 3 ran 1 layers, and the plan has {TINY.depth}"


def test_global_state_is_noticed_and_put_back() -> None:
    before = process_state.global_state()
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


def test_what_a_machine_tells_of_its_processors_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, governor in enumerate(("powersave", "performance", "powersave")):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 9.0, 9.0), raising=False)
    where = {"/sys/devices/system/cpu": tmp_path}
    monkeypatch.setattr(environment, "Path", lambda *parts: where.get(parts[0]) or Path(*parts))
    found = environment.environment("cpu")
    assert (found.affinity, found.cores) == ((1, 3), 2)
    assert (found.load, found.governor) == (1.25, "performance, powersave")
    where["/sys/devices/system/cpu"] = tmp_path / "nothing"
    assert environment.environment("cpu").governor is None, "missing is no name"


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
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(used=9000, total=48_000),
        "nvmlDeviceGetUUID": lambda handle: "GPU-abc", "nvmlSystemGetDriverVersion": lambda: "570.1",
        "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "nvmlDeviceGetClockInfo": lambda handle, kind: 1000 * kind,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
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
    assert nvml.foreign_processes(uuid="abc", pci=None, own={7}) == (5,)
    assert nvml.foreign_processes(uuid="abc", pci=None, own={8}) is None, "our own would be there, if ids were ours"
    assert nvml.energy_joules(uuid="abc", pci=None) == 2.5
    board = nvml.board(uuid="abc", pci=None)
    assert (board.memory_bytes, board.power_limit_watts, board.clocks) == (48_000, 700, {"sm": 1000, "memory": 2000})
    with pytest.raises(nvml.NvmlError, match="UUID GPU-xyz"):
        nvml.memory(uuid="GPU-xyz", pci=None, pid=7)


def a_board(**now: Any) -> types.ModuleType:
    """NVML of a board that is as its maker sells it, but for what is given."""
    module = fake_nvml(processes=[])
    state = {
        "limit": 700_000, "usual": 700_000, "ecc": 1, "usual_ecc": 1, "mig": 0, "slowed": {}, "reasons": 0,
        "processes": (os.getpid(),), **now,
    }  # fmt: skip

    def told(name: str) -> Any:
        if state[name] is None:
            raise module.NVMLError("not supported")
        return state[name]

    def slowed(handle: str, policy: str) -> Any:
        return types.SimpleNamespace(violationTime=told("slowed").get(policy, 0))

    def running(handle: str) -> Any:
        return [types.SimpleNamespace(pid=pid) for pid in told("processes")]

    names = {
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: state["limit"],
        "nvmlDeviceGetPowerManagementDefaultLimit": lambda handle: state["usual"],
        "nvmlDeviceGetCurrentEccMode": lambda handle: state["ecc"],
        "nvmlDeviceGetDefaultEccMode": lambda handle: state["usual_ecc"],
        "nvmlDeviceGetMigMode": lambda handle: [state["mig"], state["mig"]],
        "nvmlDeviceGetViolationStatus": slowed,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: told("reasons"),
        "nvmlDeviceGetComputeRunningProcesses": running,
        **{name: name for name in board_state.CAUSES},
    }
    for name, value in names.items():
        setattr(module, name, value)
    module.state = state  # type: ignore[attr-defined]  # a module that is made up
    return module


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"limit": 400_000}, "its power is limited to 400 W, where its maker has 700 W"),
        ({"ecc": 0}, "ECC is off, and its maker has it on"),
        ({"mig": 1}, "it is cut into parts (MIG)"),
        ({"limit": 690_000}, None),
        ({"ecc": 0, "usual_ecc": 0}, None),
        ({"processes": (os.getpid(), 4711)}, "others were on it, processes 4711"),
        # Where it does not count for how long it was slower: idle, and within its maker's own limit of power, is no fault.
        ({"slowed": None, "reasons": 0x1 | 0x4}, None),
        ({"slowed": None, "reasons": 0x20}, "it was slowed down by heat at 1 of 1 looks"),
        ({"slowed": None, "reasons": 0x40 | 0x20}, "it was slowed down by heat at 1 of 1 looks"),
        ({"slowed": None, "reasons": 0x80}, "it was slowed down by its supply at 1 of 1 looks"),
        ({"slowed": None, "reasons": 0x8}, "it was slowed down by its hardware's own protection at 1 of 1 looks"),
        ({"reasons": 0x40}, None),
    ],
)
def test_a_board_that_is_not_as_its_maker_sells_it(
    now: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", a_board(**now))
    watch = board_state.BoardWatch("abc")
    assert watch.unfit() == (() if reason is None else (reason,))


@pytest.mark.parametrize(("policy", "cause"), board_state.CAUSES.items())
def test_a_board_that_slowed_down_while_rows_were_timed(
    policy: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = a_board(slowed={policy: 5_000_000_000})  # long ago
    monkeypatch.setitem(sys.modules, "pynvml", module)
    watch = board_state.BoardWatch("abc")
    monkeypatch.setattr(board_state, "time", types.SimpleNamespace(monotonic=lambda: watch._began + 10))
    assert watch.unfit() == ()
    module.state["slowed"][policy] += 50_000_000  # half a percent of ten seconds
    assert watch.unfit() == ()
    module.state["slowed"][policy] += 250_000_000
    assert watch.unfit() == (f"it was slowed down by {cause} for 3% of the time",)


def test_a_process_that_comes_while_rows_are_timed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module = a_board()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as own:
        watch = board_state.BoardWatch("abc")
        module.state["processes"] = (os.getpid(), own.pid)
        assert watch.unfit() == (), "what the run itself has started disturbs nobody"
        module.state["processes"] = (own.pid, os.getppid(), 1)
        assert watch.unfit() == (f"others were on it, processes {', '.join(map(str, sorted({os.getppid(), 1})))}",)
        own.communicate(b"\n")


@pytest.mark.parametrize(
    "name", ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
)
def test_a_board_that_counts_nothing_is_asked_between_calls_why_it_is_slow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name that this is asked by now, and under its older one."""
    module = a_board(slowed=None)
    ask = module.nvmlDeviceGetCurrentClocksEventReasons
    del module.nvmlDeviceGetCurrentClocksEventReasons
    setattr(module, name, ask)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    watch = board_state.BoardWatch("abc")
    for reasons in (0, 0x40, 0x40, 0x4):
        module.state["reasons"] = reasons
        watch.poll()
    module.state["reasons"] = 0x1  # idle again
    assert watch.unfit() == ("it was slowed down by heat at 2 of 5 looks",)
    assert watch.unseen is None


def test_what_a_board_does_not_tell_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unseen(**now: Any) -> str | None:
        monkeypatch.setitem(sys.modules, "pynvml", a_board(**now))
        watch = board_state.BoardWatch("abc")
        watch.poll()
        assert watch.unfit() == ()
        return watch.unseen

    assert unseen() is None
    assert unseen(reasons=None) is None, "its counters tell"
    assert unseen(slowed=None) is None, "its reasons tell"
    assert unseen(slowed=None, reasons=None) == "throttling cannot be seen: NVML does not tell"
    for processes in (
        None,
        (),
        (3_912_345,),
    ):  # of a container, none are listed, or all by the ids that the host has for them
        assert unseen(processes=processes) == "other processes cannot be seen: NVML does not tell"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    watch = board_state.BoardWatch("abc")
    assert watch.unseen == "throttling and other processes cannot be seen: NVML does not tell"
    assert board_state.BoardWatch(None).unseen is None


def test_without_a_board_nothing_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert board_state.BoardWatch(None).unfit() == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert board_state.BoardWatch("abc").unfit() == ()
