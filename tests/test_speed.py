"""Timing by replay: no clock is read. A scripted machine drifts, stalls and says what its threads waited, as /proc does."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import pytest

from varbench.base import stats
from varbench.measure import speed, strain
from varbench.measure.calls import Marks, Reply, Request
from varbench.measure.overseer import Overseer
from varbench.measure.pairs import MILD, Call, Pair
from varbench.measure.speed import TOO_FAST, Alone, Pace, SpeedRound
from varbench.measure.strain import Reading
from varbench.record import Status
from varbench.record.failure import Failure, RowError

FULL, HALF, THIRD = "full", "half", "third"
SECONDS = {FULL: 0.3, HALF: 0.15, THIRD: 0.1, "copy": 0.3}


@dataclass
class Machine:
    """A process whose calls take as long as they should, times the machine's drift, and longer while it is held up."""

    drift: Callable[[float], float] = lambda now: 1.0
    stall: Callable[[int], float] = lambda call: 0.0
    """Seconds that a call is kept waiting, by its number."""
    share: Callable[[float], float] = lambda now: 1.0
    """Of its processors that the process gets."""
    noise: float = 0.0
    seed: int = 0
    tells: bool = True
    queues: bool = True
    """Who waits is ready to run."""
    host: bool = False
    """It waits for the machine's host, which alone tells of it."""
    remembers: bool = False
    """Has the answer to what it was asked before."""
    dies: str | None = None
    now: float = 0.0
    cpu: float = 0.0
    waited: float = 0.0
    stolen: float = 0.0
    asked: list[Request] = field(default_factory=list)
    stalled: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def ask(self, request: Request) -> Reply:
        if request.row == self.dies and len(self.asked) > 12:
            raise RowError(Failure(status=Status.FAILED, reason="as told"))
        wait = self.stall(len(self.asked))
        known = self.remembers and request in self.asked
        self.asked.append(request)
        self.stalled.append(wait > 0)
        share = 1.0 if len(request.labels) > 1 else 0.1
        work = SECONDS[request.row] * share * self.drift(self.now) * math.exp(self.random.gauss(0, self.noise))
        work *= 0.05 if known else 1.0
        wait += self._sharing(work)
        took = work + wait
        began, self.now = self.now, self.now + took
        self.cpu += took if self.host else work
        self.stolen += wait if self.host else 0.0
        self.waited += wait if self.queues and not self.host else 0.0
        marks = Marks(
            clock="perf_counter", starts=(0.0,), logits=(took,), ends=(took,), decoded=took, asked=began, began=began,
            ended=self.now,
        )  # fmt: skip
        return Reply(row=request.row, images_sha256="", tokens_sha256=None, marks=marks)

    def _sharing(self, work: float) -> float:
        """What is waited for a processor that others have."""
        now, left, step = self.now, work, 0.002
        while left > 0:
            left -= step * self.share(now)
            now += step
        return max(0.0, now - self.now - work - step)

    def strain(self) -> Reading | None:
        if not self.tells:
            return None
        stolen = int(self.stolen * os.sysconf("SC_CLK_TCK"))
        return Reading(cpu=int(self.cpu * 1e9), waited=int(self.waited * 1e9), stolen=stolen, switches=0)


def overseer(batch: int, pairs: int) -> Overseer:
    return Overseer(secret="drawn", batch=batch, classes=10, calls=pairs, keep=Path("unused.npz"))


def timed(
    machine: Machine, *rows: str, pairs: int = 6, batch: int = 4, error: float = math.inf, budget: float = 0.0,
    full: str | None = FULL, failures: list[str] | None = None, settle: Callable[[], bool] = lambda: True,
) -> dict[str, SpeedRound]:  # fmt: skip
    return speed.time_rows(
        machine.ask, rows, full=full, pace=Pace(batch=batch, pairs=pairs, error=lambda row: error, budget=budget),
        overseer=overseer(batch, pairs), strain=machine.strain, failed=lambda row, error: (failures if failures is not None else []).append(row),
        settle=settle,
    )  # fmt: skip


def ratio(pairs: tuple[Pair, ...]) -> stats.Ratio:
    return stats.paired_ratio(*([[_of(call) for call in side]] for side in _sides(pairs)))


def _sides(pairs: tuple[Pair, ...]) -> tuple[list[Call | None], list[Call | None]]:
    return [pair.full for pair in pairs], [pair.row for pair in pairs]


def _of(call: Call | None) -> float:
    assert call is not None
    return call.times.end_to_end


# Which pairs count


def now_and_then(call: int) -> float:
    return 0.5 if call % 7 == 3 else 0.0


def test_calls_that_were_held_up_are_made_again_and_counted() -> None:
    machine = Machine(stall=now_and_then)
    found = timed(machine, HALF)[HALF]
    assert len(found.throughput) == len(found.latency) == 6
    assert found.discarded > 0
    kept = [*found.throughput, *found.latency]
    assert all(pair.row.strain and pair.row.strain.waited_seconds == 0 for pair in kept)
    assert all(pair.full and pair.full.strain and pair.full.strain.waited_seconds == 0 for pair in kept)
    assert ratio(found.throughput).value == pytest.approx(2.0)
    calls = len(machine.asked) - 6 - 1  # without warming up both rows, and the repeated call at the end
    assert found.discarded == calls - 2 * 12


def test_what_the_host_took_from_a_call_is_seen_by_that_alone() -> None:
    """A guest's threads then seem to run all the time."""
    found = timed(Machine(stall=now_and_then, host=True), HALF)[HALF]
    kept = [
        call for pair in (*found.throughput, *found.latency) for call in (pair.row, pair.full) if call and call.strain
    ]
    assert found.discarded > 0 and len(kept) == 24
    assert all(call.strain.stolen_seconds == call.strain.waited_seconds == 0 for call in kept if call.strain)
    assert ratio(found.throughput).value == pytest.approx(2.0)


def beside_a_busy_one(seed: int, *, remembers: bool) -> list[float]:
    """Shares that an equal call takes of a fresh one, over three processes beside a neighbour that rests now and then, on a
    machine where one call in six is kept waiting for half a second."""
    found = []
    for number in range(3):
        machine = Machine(
            stall=lambda call, seed=f"{seed} {number}": 0.5 * (random.Random(f"{seed} {call}").random() < 1 / 6),
            share=lambda now, since=0.37 * seed + 0.7 * number: 0.4 if (now + since) % 2 < 1 else 1.0,
            noise=0.05,
            seed=3 * seed + number,
            remembers=remembers,
        )
        found.append(timed(machine, HALF, pairs=3, budget=1.0, batch=1)[HALF].identical)
    assert None not in found
    return found


@pytest.mark.parametrize("tells", [True, False])
def test_an_honest_row_whose_fresh_calls_were_all_held_up_is_not_blamed(tells: bool) -> None:
    class FreeAtLast(Machine):
        def ask(self, request: Request) -> Reply:
            if request in self.asked:
                self.stall = lambda call: 0.0
            return super().ask(request)

    def equal(remembers: bool) -> float:
        machine = FreeAtLast(stall=lambda call: 5.0, tells=tells, remembers=remembers)
        found = timed(machine, HALF, pairs=1, batch=1)[HALF].identical
        assert found is not None
        return found

    assert equal(remembers=False) > TOO_FAST > equal(remembers=True)


def test_who_remembers_calls_is_found_out_beside_a_busy_neighbour() -> None:
    """One equal call that is held up in one of the processes is no excuse."""
    assert all(max(beside_a_busy_one(seed, remembers=True)) < TOO_FAST for seed in range(200))


def test_who_does_not_is_never_blamed_for_his_neighbour() -> None:
    assert not any(max(beside_a_busy_one(seed, remembers=False)) < TOO_FAST for seed in range(200))


def test_the_full_model_alone_is_never_asked_between_neighbours() -> None:
    """It takes the caches of whoever comes next, and two rows always had the full model between them."""
    machine, at = Machine(), list[int]()

    def plain(request: Request) -> Reply:
        at.append(len(machine.asked))
        return machine.ask(request)

    found = speed.time_rows(
        machine.ask, (HALF, THIRD), full=FULL, pace=Pace(batch=4, pairs=6, error=lambda row: math.inf, budget=0.0),
        overseer=overseer(4, 6), strain=machine.strain, failed=lambda row, error: None,
        alone=Alone(ask=plain, strain=machine.strain),
    )  # fmt: skip
    assert len(at) == 2 * sum(map(len, found[HALF].alone.values())) > 0, "a call of one image warms it up each time"
    for first, second in zip(at[::2], at[1::2], strict=True):
        before, after = machine.asked[first - 1], machine.asked[second + 1]
        assert (before.row, len(before.labels)) != (FULL, 4)
        assert (after.row, len(after.labels)) == (FULL, 1)
        assert second == first + 1 and len(machine.asked[first].labels) == 1


def test_the_full_model_alone_gives_its_memory_back_where_the_device_does_not_hold_both() -> None:
    """It is set up before the call that counts, by one of the same shape, and gives back what that took after it."""
    machine, asked = Machine(), list[Request]()

    def plain(request: Request) -> Reply:
        asked.append(request)
        return machine.ask(request)

    speed.time_rows(
        machine.ask, (HALF,), full=FULL, pace=Pace(batch=4, pairs=6, error=lambda row: math.inf, budget=0.0),
        overseer=overseer(4, 6), strain=machine.strain, failed=lambda row, error: None,
        alone=Alone(ask=plain, strain=machine.strain, begin=lambda: True),
    )  # fmt: skip
    assert {len(request.labels) for request in asked} == {1, 4}
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert (first.release, second) == (False, replace(first, release=True))


def test_a_call_is_never_judged_by_its_time() -> None:
    """Every third call takes twice as long with nothing to show for it: that is how long this row takes."""
    slow = Machine(drift=iter_drift([1.0, 1.0, 2.0]))
    found = timed(slow, HALF, pairs=30)[HALF]
    assert found.discarded == 0
    assert len(found.throughput) == 30


def iter_drift(pattern: list[float]) -> Callable[[float], float]:
    numbers = count()
    return lambda now: pattern[next(numbers) % len(pattern)]


def test_after_the_bound_the_least_held_up_are_kept() -> None:
    waits = {number: 0.01 + 0.001 * (number * 37 % 101) for number in range(1000)}
    machine = Machine(stall=waits.__getitem__)
    found = timed(machine, HALF, pairs=3, batch=1)[HALF]
    bound = speed.MOST_RETAKEN * 3
    assert len(found.throughput) == 3
    tries = 1 + speed.CALLS_AGAIN
    assert found.discarded == bound - 3 + 2 * bound * speed.CALLS_AGAIN
    every = list(waits.values())[6:]
    calls = [min(every[place : place + tries]) for place in range(0, 2 * bound * tries, tries)]
    worst = sorted(max(pair) for pair in zip(calls[::2], calls[1::2], strict=True))
    kept = sorted(_waited(pair) for pair in found.throughput)
    assert max(kept) < worst[bound // 2 + 1], "the least held up of all, not the first"


@pytest.mark.parametrize("queues", [True, False])
def test_what_is_kept_says_by_how_much_either_call_was_delayed(queues: bool) -> None:
    """Also of who is throttled, which waits in no queue: it ran for less than is usual. A call that is quiet lost nothing."""
    machine = Machine(stall=lambda call: 0.1 if call > 20 else 0.0, queues=queues)
    found = timed(machine, HALF, pairs=12, batch=1)[HALF]
    lost = [call.delayed for pair in found.throughput for call in (pair.row, pair.full) if call is not None]
    stalls = [
        call.times.end_to_end > 0.09 for pair in found.throughput for call in (pair.row, pair.full) if call is not None
    ]
    assert any(stalls) and not all(stalls)
    for share, stalled in zip(lost, stalls, strict=True):
        assert (share > 0) == stalled
        assert not stalled or share == pytest.approx(0.1 / (0.1 + 0.1 * SECONDS[FULL]), rel=0.2)
    assert all(pair.held_up == 0 for pair in found.throughput) == (not queues)


def _waited(pair: Pair) -> float:
    return max(call.strain.waited_seconds for call in (pair.row, pair.full) if call is not None and call.strain)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not tell")
def test_the_system_tells_what_kept_a_process_from_running() -> None:
    """Two loops on one core."""
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nprint(flush=True)\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for loop in loops:
            assert loop.stdout is not None and loop.stdout.readline()
        before = strain.read(loops[0].pid)
        time.sleep(1.0)
        after = strain.read(loops[0].pid)
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()
    assert before is not None and after is not None
    found = before.until(after)
    assert found.switches > 0 and found.waited_seconds > 0.1 and 0 < found.cpu_seconds < 0.9
    assert found.held_up(1.0) > strain.HELD_UP


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_what_a_process_uses_is_counted_whoever_of_it_used_it() -> None:
    """A thread that has ended, a child that has, and one that lives: none of them is in sight of its main thread's counters."""
    code = """
        import os, subprocess, sys, threading, time

        def work():
            began = time.thread_time()
            while time.thread_time() - began < 0.5: pass

        CHILD = "import time\\nwhile time.process_time() < 0.5: pass\\nprint(flush=True)\\ntime.sleep(60)"

        def thread():
            one = threading.Thread(target=work)
            one.start()
            one.join()

        def child():
            started = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE)
            started.stdout.readline()
            return started

        def ended():
            one = child()
            one.kill()
            one.wait()

        kept = []
        for line in sys.stdin:
            kept.append({"thread": thread, "child": child, "ended": ended}[line.strip()]())
            print("done", flush=True)
        for one in kept:
            one and one.kill()
    """
    told = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], **told) as process:
        assert process.stdin is not None and process.stdout is not None
        for kind in ("thread", "ended", "child"):
            before = strain.used_seconds(process.pid)
            process.stdin.write(f"{kind}\n")
            assert process.stdout.readline() == "done\n"
            after = strain.used_seconds(process.pid)
            assert before is not None and after is not None and after - before > 0.45, kind
        process.stdin.close()
    assert strain.used_seconds(process.pid) is None


def test_what_a_process_uses_between_calls_is_told_apart_from_what_it_uses_in_them() -> None:
    """A reading that fails is no reading; what lies around it counts nowhere."""
    used, readings = 0.0, 0

    def read() -> float | None:
        nonlocal used, readings
        used, readings = used + (0.25 if readings % 2 == 0 else 1.0), readings + 1
        return None if readings == 10 else used  # after the fifth call

    machine, judge = Machine(), overseer(4, 6)
    speed.time_rows(
        machine.ask, [HALF], full=FULL, pace=Pace(batch=4, pairs=6, error=lambda row: math.inf, budget=0.0),
        overseer=judge, strain=machine.strain, failed=lambda row, error: None, used=read,
    )  # fmt: skip
    seen, calls = judge.oversight(HALF), len(machine.asked)
    assert seen.busy_within == pytest.approx(1.0 * (calls - 1))
    assert seen.busy_between == pytest.approx(0.25 * (calls - 2))


def test_a_call_whose_threads_were_kept_off_the_processor_is_taken_again() -> None:
    """As a container's limit does it: they wait in no queue."""
    found = timed(Machine(stall=lambda call: 0.1 if call == 30 else 0.0, queues=False), HALF, pairs=12)[HALF]
    assert found.discarded == 1


class Neighbour:
    """A machine of two processors with others on it, busy by a pattern of windows."""

    def __init__(self, *busy: float) -> None:
        self.busy, self.now, self.worked = list(busy), 0.0, 0.0

    def read(self) -> tuple[float, float]:
        return self.worked, self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds * (self.busy.pop(0) if len(self.busy) > 1 else self.busy[0])


def test_a_quiet_moment_is_waited_for_and_in_the_end_no_more() -> None:
    rests = Neighbour(1.0, 1.0, 2.0, 1.0, 0.1)
    assert strain.Quiet(rests.read, rests.sleep).wait()
    assert rests.now == pytest.approx(0.25)
    works = Neighbour(1.0)
    quiet = strain.Quiet(works.read, works.sleep)
    assert [quiet.wait() for _ in range(4)] == [True, True, False, False]
    assert works.now == pytest.approx(3 * strain.PATIENCE, abs=0.2), "the fourth is not waited for"
    quiet.hope()
    assert not quiet.wait(), "the next process tries once"
    assert works.now == pytest.approx(4 * strain.PATIENCE, abs=0.2)
    works.busy = [0.0]
    assert not quiet.wait()
    quiet.hope()
    assert quiet.wait(), "the neighbour is gone"
    now_and_then = Neighbour(*[1.0] * 60, 0.0, *[1.0] * 60, 0.0)
    quiet = strain.Quiet(now_and_then.read, now_and_then.sleep)
    assert all(quiet.wait() for _ in range(10)), "it comes, if late"
    assert strain.Quiet(lambda: None).wait(), "where nothing is told nothing is waited for"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell")
def test_the_system_tells_what_its_processors_work() -> None:
    before, began = strain.busy_seconds(), time.monotonic()
    while time.monotonic() - began < 0.5:
        pass
    after = strain.busy_seconds()
    assert before is not None and after is not None
    assert 0.4 < after[0] - before[0]
    assert 0.5 <= after[1] - before[1]


def test_where_the_system_does_not_tell_nothing_is_discarded() -> None:
    found = timed(Machine(stall=now_and_then, tells=False), HALF)[HALF]
    assert found.discarded == 0
    assert len(found.throughput) == 6
    assert all(pair.row.strain is None for pair in found.throughput)


# Who is whose neighbour


@pytest.mark.parametrize("rows", [(HALF,), (HALF, THIRD), (HALF, THIRD, "copy")])
@pytest.mark.parametrize("pairs", [3, 6, 12])
def test_each_row_comes_first_as_often_as_second(rows: tuple[str, ...], pairs: int) -> None:
    for row, found in timed(Machine(), *rows, pairs=pairs).items():
        first = sum(pair.row.times.began < pair.full.times.began for pair in found.throughput if pair.full)
        assert abs(2 * first - pairs) <= 1, row


def test_two_rows_share_the_full_models_call_between_them() -> None:
    machine = Machine()
    found = timed(machine, HALF, THIRD)
    assert [pair.full for pair in found[HALF].throughput] == [pair.full for pair in found[THIRD].throughput]
    order = [request.row for request in machine.asked if len(request.labels) == 4]
    threes = ["".join(row[0] for row in order[place : place + 3]) for place in range(6, len(order) - 2, 3)]
    assert set(threes) == {"hft", "tfh"}
    for one, other in pairwise(sorted((p for p in found[HALF].throughput), key=lambda p: p.row.times.began)):
        assert one.row.times.ended <= other.row.times.began


def test_a_drift_that_misleads_medians_leaves_pairs_alone() -> None:
    """The machine warms up while it measures, and each row is timed in its own stretch of that: only the pairs know."""
    machine = Machine(drift=lambda now: 1 + 0.5 * now, noise=0.003, seed=1)
    found = timed(machine, HALF, THIRD, "copy", pairs=12)
    for row, truth in ((HALF, 2.0), (THIRD, 3.0), ("copy", 1.0)):
        assert ratio(found[row].throughput).value == pytest.approx(truth, rel=0.06), row
    full = [_of(pair.full) for one in found.values() for pair in one.throughput]
    apart = {row: stats.median(full) / stats.median([_of(p.row) for p in found[row].throughput]) for row in found}
    assert max(abs(apart[row] / truth - 1) for row, truth in ((HALF, 2.0), (THIRD, 3.0), ("copy", 1.0))) > 0.06


def test_a_row_that_fails_leaves_and_the_others_go_on() -> None:
    failures: list[str] = []
    found = timed(Machine(dies=THIRD), HALF, THIRD, failures=failures)
    assert failures == [THIRD]
    assert set(found) == {HALF}
    assert len(found[HALF].throughput) == 6


def test_a_row_without_a_full_model_is_timed_alone() -> None:
    found = timed(Machine(), HALF, full=None)[HALF]
    assert all(pair.full is None for pair in found.throughput)


# How long


def test_noisy_rows_take_more_pairs_until_they_are_precise_and_quiet_ones_do_not() -> None:
    error = speed.error_within(0.03, processes=3)
    quiet = timed(Machine(noise=0.002), HALF, pairs=3, error=error, budget=60.0)[HALF]
    noisy = timed(Machine(noise=0.03, seed=2), HALF, pairs=3, error=error, budget=60.0)[HALF]
    assert len(quiet.throughput) == 3
    assert len(noisy.throughput) > 10
    assert ratio(noisy.throughput).error <= error


def test_the_budget_ends_what_would_never_be_precise() -> None:
    machine = Machine(noise=0.5, seed=3)
    found = timed(machine, HALF, pairs=3, error=1e-6, budget=5.0)[HALF]
    spent = sum(_of(pair.row) + _of(pair.full) for pair in (*found.throughput, *found.latency))
    assert 5.0 <= spent < 8.0


@pytest.mark.parametrize("processes", [1, 3, 5, 9])
def test_what_is_precise_enough_within_processes_gives_the_interval_that_was_asked_for(processes: int) -> None:
    """Where processes differ by as much as their pairs leave open."""
    error = speed.error_within(0.03, processes=processes)
    if processes == 1:
        assert 1.96 * error <= 0.03
    else:
        assert stats.student(processes - 1) * math.sqrt(2) * error / math.sqrt(processes) == pytest.approx(0.03)


@pytest.mark.parametrize("hopeful", [True, False])
def test_what_is_never_quiet_ends_with_the_budget(hopeful: bool) -> None:
    """Where no quiet moment comes a call is not even made again."""
    machine = Machine(stall=lambda call: 0.1)
    found = timed(machine, HALF, pairs=3, budget=2.0, settle=lambda: hopeful)[HALF]
    assert len(found.throughput) == len(found.latency) == 3
    made = len(machine.asked) - 6 - 1
    assert machine.now < 3 * speed.MOST_SPENT * 2.0
    assert (made == 2 * (found.discarded + 6)) == (not hopeful)


@pytest.mark.parametrize(("share", "times"), [(0.02, 1.5), (0.08, 1.7)])
def test_what_is_hardly_held_up_ends_with_the_budget(share: float, times: float) -> None:
    """Many short stalls, as a system's own services make them, are no reason to spend the budget four times."""
    machine = Machine(share=lambda now: 1 / (1 + share))
    found = timed(machine, HALF, pairs=4, budget=10.0)[HALF]
    assert len(found.throughput) == len(found.latency) == 4
    spent = machine.now - 6 * SECONDS[FULL]
    assert spent < times * 10.0 if share <= MILD else spent > times * 10.0


@pytest.mark.parametrize("stall", [lambda call: 0.0, now_and_then])
def test_what_every_call_waits_for_is_no_reason_to_make_it_again(stall: Callable[[int], float]) -> None:
    """A system's own services take as much of the row's call as of its neighbour's. A stall on top of that is seen as ever."""
    machine = Machine(share=lambda now: 1 / (1 + 0.015), stall=stall)
    found = timed(machine, HALF, pairs=12, budget=1.0)[HALF]
    kept = [call for pair in found.throughput for call in (pair.row, pair.full) if call is not None]
    assert all(0.01 < call.delayed < 0.02 and not call.stalled for call in kept), "the interval knows of it"
    assert ratio(found.throughput).value == pytest.approx(2.0)
    assert (found.discarded > 3) == (stall is now_and_then), "what is usual is known after three calls"


def test_the_full_model_alone_is_made_again_for_what_could_hide_a_slower_one_only() -> None:
    def asked_alone(share: float) -> int:
        machine, alone = Machine(), Machine(share=lambda now: 1 / (1 + share))
        speed.time_rows(
            machine.ask, (HALF,), full=FULL, pace=Pace(batch=4, pairs=6, error=lambda row: math.inf, budget=0.0),
            overseer=overseer(4, 6), strain=machine.strain, failed=lambda row, error: None,
            alone=Alone(ask=alone.ask, strain=alone.strain),
        )  # fmt: skip
        return len(alone.asked)

    assert asked_alone(0.1) > 2 * asked_alone(0.025) == 2 * asked_alone(0.0)


def test_what_the_full_model_alone_waits_for_is_not_what_calls_of_the_rows_process_wait_for_anyway() -> None:
    """Its calls lose half of their time; that is no excuse for one of the rows' that waits for 2.5 % now and then."""
    machine = Machine(share=lambda now: 1 / 1.025 if now % 2 < 0.6 else 1.0)
    alone = Machine(share=lambda now: 0.5)
    found = speed.time_rows(
        machine.ask, (HALF,), full=FULL, pace=Pace(batch=4, pairs=12, error=lambda row: math.inf, budget=60.0),
        overseer=overseer(4, 12), strain=machine.strain, failed=lambda row, error: None,
        alone=Alone(ask=alone.ask, strain=alone.strain),
    )[HALF]  # fmt: skip
    assert found.discarded > 3
    assert all(pair.delayed == 0 for pair in found.throughput)


def waiting(machine: Machine) -> bool:
    """Until the neighbour rests."""
    while machine.share(machine.now) < 1:
        machine.now += 0.01
    return True


def test_a_call_that_fits_between_is_timed_where_a_pair_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The neighbour rests for a second, and pairs take 1.2."""
    monkeypatch.setattr(__name__ + ".SECONDS", {FULL: 0.8, HALF: 0.4})
    asked = {}
    for name, settle in (("waits", waiting), ("does not", lambda machine: True)):
        machine = Machine(share=lambda now: 0.5 if now % 2 < 1 else 1.0, noise=0.01)
        settled = partial(settle, machine)
        found = timed(machine, HALF, pairs=4, budget=60.0, settle=settled)[HALF]
        asked[name] = len(machine.asked)
        if name == "waits":
            assert all(_waited(pair) < 0.01 for pair in found.throughput)
            assert ratio(found.throughput).value == pytest.approx(2.0, rel=0.02)
    assert asked["waits"] < asked["does not"]


def beside_a_neighbour(*, tells: bool) -> stats.Ratio:
    """Nine processes beside a neighbour that takes half of the machine for one second in two."""
    found = []
    for seed in range(9):
        machine = Machine(
            share=lambda now, since=seed * 0.37: 0.5 if (now + since) % 2 < 1 else 1.0,
            noise=0.01,
            seed=seed,
            tells=tells,
        )
        error = speed.error_within(0.03, processes=3)
        found.append(timed(machine, HALF, pairs=3, batch=1, error=error, budget=3.0)[HALF].throughput)
    return stats.paired_ratio(
        [[_of(p.full) for p in some] for some in found], [[_of(p.row) for p in some] for some in found]
    )


def test_a_neighbour_that_is_busy_one_second_in_two_costs_pairs_and_no_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(__name__ + ".SECONDS", {FULL: 0.3, HALF: 0.15})
    quiet, blind = beside_a_neighbour(tells=True), beside_a_neighbour(tells=False)
    assert quiet.low < 2.0 < quiet.high
    assert math.sqrt(quiet.high / quiet.low) - 1 < 0.03
    assert blind.width > 2 * quiet.width, "it is the gate that does it"


def test_seeds_of_calls_are_all_different_but_for_the_repeated_one() -> None:
    machine = Machine()
    speed.time_rows(
        machine.ask, [HALF], full=FULL, pace=Pace(batch=4, pairs=6, error=lambda row: math.inf, budget=0.0),
        overseer=overseer(4, 6), strain=machine.strain, failed=lambda row, error: None,
    )  # fmt: skip
    asked = [request.seed for request in machine.asked]
    assert len(asked) - len(set(asked)) == 1
