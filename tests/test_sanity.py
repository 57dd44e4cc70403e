"""What no honest row shows: each finding by itself, and every shipped method within its bounds."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import Script, a_run, conduct, scripted

from varbench import rows
from varbench.base import stats
from varbench.data.shapes import Shapes
from varbench.measure import honesty
from varbench.measure.calls import Outside, Reply, Times
from varbench.measure.overseer import Overseer, Oversight, ScoredImages
from varbench.measure.pairs import Call, Pair
from varbench.measure.process_memory import private_bytes
from varbench.measure.speed import SpeedRound
from varbench.measure.strain import Strain
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.cost import work
from varbench.quality import copies
from varbench.quality.likeness import chance
from varbench.record import Record, Score, load_records
from varbench.rows import FULL
from varbench.rows.manager import manager
from varbench.run import denominators, sanity
from varbench.run.findings import Findings
from varbench.run.prepare import Run
from varbench.run.timing import COLUMNS


def test_images_of_two_origins_are_told_apart_and_those_of_one_are_not() -> None:
    generator = np.random.default_rng(3)
    same = [chance(*generator.standard_normal((2, 16, 64)).astype(np.float32), seed=seed) for seed in range(40)]
    assert min(same) > 1e-3 and 0.3 < stats.median(same) < 0.7
    first, second = generator.standard_normal((2, 16, 64)).astype(np.float32)
    assert chance(first, second + 1) < sanity.UNLIKE


def test_copies_of_reference_images_are_near_and_other_real_images_are_not() -> None:
    data = Shapes(side=32)
    reference, others = data.images(data.test[:300]), data.images(data.test[300:600])
    small = copies.thumbnails(reference)
    reach = copies.within_real(small)
    noise = np.random.default_rng(0).integers(-3, 4, reference.shape)
    noisy = np.clip(reference[:100].astype(int) + noise[:100], 0, 255).astype(np.uint8)
    assert copies.share_copied(copies.thumbnails(noisy), small, reach=reach) == 1
    assert copies.share_copied(copies.thumbnails(others), small, reach=reach) <= 0.01


def test_small_chances_add_up() -> None:
    assert stats.combined_chance([0.01]) == pytest.approx(0.01)
    assert stats.combined_chance([0.01] * 4) < 1e-4 < stats.combined_chance([0.5] * 4)


def test_memory_that_torch_and_python_do_not_know_is_seen() -> None:
    before = private_bytes()
    if before is None:
        pytest.skip("this system does not tell")
    block = (ctypes.c_char * (1 << 22))()
    held = private_bytes()
    del block
    assert held is not None and held - before >= 1 << 22
    assert (private_bytes() or 0) - before < 1 << 20


NOT_RECORDED = {
    "dit": "untrained, and no plan says what it saves",
}
"""Shipped plugins that no row of the report has, and why."""


@pytest.fixture(scope="module")
def recorded() -> tuple[Run, list[Record]]:
    """Every row of the report of all methods, and the run that would make it today."""
    records = list(load_records([Path(__file__).parents[1] / "reports" / "tiny" / "all-methods" / "records"]).records)
    options = records[0].protocol
    with pytest.MonkeyPatch.context() as monkeypatch, scripted(monkeypatch):
        run = a_run(
            Path("all-methods"), plugins=",".join(record.row.row for record in records), batch=options.batch,
            dtype=options.dtype, rounds=options.rounds,
        )  # fmt: skip
    return run, records


def speed_of(record: Record, *, faster: float = 1.0) -> dict[int, SpeedRound]:
    """The rounds that the record's samples are of; `faster` is how much more so its network is said to be."""
    assert record.timing is not None
    pairs: dict[int, dict[str, list[Pair]]] = {}
    for regime in ("throughput", "latency"):
        columns = {one.column: one for one in record.timing.columns if one.regime == regime}
        for number, samples in enumerate(columns["end_to_end"].rounds):
            for place in range(len(samples)):
                sides = []
                for side, share in (("rounds", faster), ("beside", 1.0)):
                    seconds = {name: getattr(column, side)[number][place] for name, column in columns.items()}
                    told = {name: seconds.get(name) for name in ("transformer", "loop", "with_decoder", "end_to_end")}
                    told["transformer"] = told["transformer"] and told["transformer"] / share
                    times = Times(clock="", steps=(), began=0.0, ended=0.0, **told)
                    sides.append(Call(times=times, strain=None, seen=times.end_to_end, sound=True))
                pairs.setdefault(number, {}).setdefault(regime, []).append(Pair(row=sides[0], full=sides[1]))
    return {
        number: SpeedRound(
            first_call=1.0, second_call=1.0, throughput=tuple(of["throughput"]), latency=tuple(of["latency"])
        )
        for number, of in pairs.items()
    }


def test_every_shipped_plugin_has_a_recorded_row_or_a_reason(recorded: tuple[Run, list[Record]]) -> None:
    shipped = {name for name in manager().names() if manager().info(name).distribution == "varbench"}
    assert shipped - {plugin.name for record in recorded[1] for plugin in record.row.plugins} == set(NOT_RECORDED)


def test_no_recorded_row_of_a_shipped_method_trips(recorded: tuple[Run, list[Record]]) -> None:
    """By its raw samples against what its plan of today saves, and by its score against that of real images."""
    run, records = recorded
    assert len(records) > 60
    floors = next(one.quality.floors for one in records if one.row.row == FULL and one.quality)
    for record in records:
        found = Findings(speed=speed_of(record))
        assert list(sanity.reasons(run, run.rows[record.row.row], found, {})) == [], record.row.row
        if record.quality is not None and record.quality.scores:
            assert not sanity.beats_real_images(record.quality.scores[0], floors["real"]), record.row.row


def test_a_recorded_row_whose_network_would_save_more_than_its_plan_does_trips(
    recorded: tuple[Run, list[Record]],
) -> None:
    run, records = recorded
    for record in records:
        row = run.rows[record.row.row]
        if row.plan is None or row.resolved.accounting != "lossless":
            continue
        said = "; ".join(sanity.reasons(run, row, Findings(speed=speed_of(record, faster=400)), {}))
        assert "it saves no more than" in said, record.row.row


@pytest.mark.parametrize(("share", "explains"), [(0.0, 1.0), (0.01, 1.01), (0.5, 1.88), (1.0, 16.0)])
def test_a_smaller_type_explains_as_much_as_is_computed_in_it(share: float, explains: float) -> None:
    model = presets.preset("tiny").spec
    full = work(compile_plan(model, rows.resolve("full_var", model).policies), batch=32, dtype="float32")
    steps = [replace(step, other_types=(("int8", int(share * step.flops)),)) for step in full.steps]
    own = replace(full, steps=tuple(steps))
    assert sanity.explained(own, full, calls=(1, 1)) == pytest.approx(explains, rel=0.01)
    larger = replace(own, dtype="int4")
    assert sanity.explained(larger, full, calls=(1, 1)) == 1, "int8 is no smaller type beside four bits"


@pytest.fixture
def run_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, dict[str, Findings], Script]:
    with scripted(monkeypatch, seconds={"variant@d2": 0.5}) as script:
        run = a_run(tmp_path, plugins="variant@d2", rounds=3)
        execution = conduct(run, tmp_path)
        execution.everything()
    return run, execution.found, script


def reasons(run: Run, found: Findings) -> str:
    return "; ".join(sanity.reasons(run, run.rows["variant@d2"], found, {}))


def with_oversight(found: Findings, **changes: Any) -> Findings:
    """The same rounds, seen otherwise."""
    speed = {}
    for number, one in found.speed.items():
        assert isinstance(one.oversight, Oversight)
        speed[number] = replace(one, oversight=replace(one.oversight, **changes))
    return replace(found, speed=speed)


def with_calls(found: Findings, regime: str, changed: Callable[[Call], Call]) -> Findings:
    """The same rounds, where the row's calls of a regime are others."""

    def of(one: SpeedRound) -> tuple[Pair, ...]:
        return tuple(replace(pair, row=changed(pair.row)) for pair in one.pairs(regime))

    changes: dict[int, Any] = {number: {regime: of(one)} for number, one in found.speed.items()}
    return replace(found, speed={number: replace(one, **changes[number]) for number, one in found.speed.items()})


def in_time(call: Call, **seconds: float) -> Call:
    return replace(call, times=replace(call.times, **seconds))


def test_an_honest_row_gives_no_reason(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    run, found, _ = run_and_found
    assert reasons(run, found["variant@d2"]) == ""


@pytest.mark.parametrize("regime", ["throughput", "latency"])
def test_each_lie_of_the_clock_has_its_reason(
    run_and_found: tuple[Run, dict[str, Findings], Script], regime: str
) -> None:
    run, found, _ = run_and_found
    own = found["variant@d2"]

    def said(changed: Callable[[Call], Call]) -> str:
        return reasons(run, with_calls(own, regime, changed))

    assert said(lambda call: replace(call, seen=call.seen + 0.0009)) == ""
    assert said(lambda call: replace(call, sound=False)).startswith(f"{regime}: ")
    assert "outside" in said(lambda call: replace(call, sound=False))
    later = partial(with_calls, regime=regime, changed=lambda call: replace(call, seen=call.seen + 0.0011))
    assert f"{regime}: its process states 0.5" in reasons(run, later(own))
    assert reasons(run, later(replace(own, speed={0: own.speed[0]}))) == "", "one process is little to go by"
    once = replace(own, speed={0: replace(own.speed[0], **{regime: own.speed[0].pairs(regime)[:2]})})
    hiccup = iter((0.2, 0.0))
    slow = with_calls(once, regime, lambda call: replace(call, seen=call.seen + next(hiccup)))
    assert reasons(run, slow) == "", "of two calls one may have met something"
    waited = Strain(cpu_seconds=1.0, waited_seconds=0.02, stolen_seconds=0.0, switches=1)
    assert said(lambda call: replace(call, seen=call.seen + 0.02, strain=waited)) == "", "it waited for a processor"
    waited = replace(waited, waited_seconds=9.0)
    assert "states" in said(lambda call: replace(call, seen=call.seen + 0.06, strain=waited)), "which explains a tenth"


def test_work_between_calls_has_its_reason(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    run, found, _ = run_and_found
    rounds = len(found["variant@d2"].speed)
    said = reasons(run, with_oversight(found["variant@d2"], busy_between=5.0, busy_within=10.0))
    assert f"used {5 * rounds:.1f} s of processor time between calls" in said


SMALL = {"throughput": (0.045, 0.046, 0.047), "latency": (0.09, 0.091, 0.092)}


def with_denominators(found: Findings, name: str, *logs: float, regime: str = "throughput") -> Findings:
    """A round each, in a process of its own, where the full model takes so much longer than without the row's plugins."""
    one = found.speed[0]
    assert one.oversight is not None
    alone = one.throughput[0].row
    speed = {}
    for number, log in enumerate(logs):
        beside = in_time(alone, end_to_end=alone.times.end_to_end * math.exp(log))
        seen = replace(one.oversight, secret=f"{name} {number}")
        pairs = (Pair(row=alone, full=beside),) * 3
        speed[number] = replace(one, oversight=seen, alone={regime: pairs})
    return replace(found, speed=speed)


@pytest.mark.parametrize("regime", ["throughput", "latency"])
def test_denominators_are_judged_over_all_processes_of_a_plugin(
    run_and_found: tuple[Run, dict[str, Findings], Script], regime: str
) -> None:
    run, found, _ = run_and_found
    own = with_denominators(found["variant@d2"], "own", 0.09, 0.19, 0.13, regime=regime)
    assert reasons(run, own) == "", "three processes are not sure to one in a thousand"
    # Another set of weights, in whose processes the same plugin runs.
    more = with_denominators(found["variant@d2"], "more", 0.11, 0.15, 0.13, regime=regime)
    rows_of_run = {**run.rows, "variant@d8": replace(run.rows["variant@d2"])}
    both = replace(run, rows=rows_of_run)

    def said(name: str, others: dict[str, Findings]) -> str:
        return "; ".join(sanity.reasons(both, both.rows[name], others[name], {}, others))

    assert f"{regime}: the full model takes" in said("variant@d2", {"variant@d2": own, "variant@d8": more})
    honest = with_denominators(found["full_var"], "other", 0.09, 0.19, 0.13, regime=regime)
    assert said("full_var", {"full_var": honest, "variant@d8": more}) == "", "nothing of that plugin ran there"
    small = with_denominators(found["variant@d2"], "small", *SMALL[regime], regime=regime)
    assert said("variant@d2", {"variant@d2": small, "variant@d8": small}) == "", "so little is nothing"


@pytest.mark.parametrize("regime", ["throughput", "latency"])
def test_what_the_network_saves_is_saved_by_the_whole_call(
    run_and_found: tuple[Run, dict[str, Findings], Script], regime: str
) -> None:
    """As a share of the row's own call: half of a row's time may hide no more than half of what the full model's may."""
    run, found, _ = run_and_found

    def said(share: float) -> str:
        def changed(call: Call) -> Call:
            assert call.times.transformer is not None
            return in_time(call, transformer=call.times.transformer - share * call.times.end_to_end)

        return reasons(run, with_calls(found["variant@d2"], regime, changed))

    # The scripted full model has 0.2 s beside its network, and the row, which is twice as fast, 0.1 s.
    assert said(0.24) == ""
    assert f"{regime}: its network takes 0.5" in said(0.26)


def test_a_gain_beyond_what_is_saved_has_no_cause(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    run, found, _ = run_and_found
    speed = {}
    for number, one in found["variant@d2"].speed.items():
        pairs = []
        for pair in one.throughput:
            times = replace(pair.row.times, transformer=0.02)
            pairs.append(replace(pair, row=replace(pair.row, times=times)))
        speed[number] = replace(one, throughput=tuple(pairs))
    said = reasons(run, replace(found["variant@d2"], speed=speed))
    assert "throughput: 4" in said and "times of FLOPs, bytes or layer calls" in said
    assert "only 0.50" in said or "only 0.49" in said, "what the network saves is not saved by the whole call"


def test_better_than_real_images_is_no_score(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    score = Score(name="FD-shapes", value=0.1, low=0.05, high=0.2, n=32, better="lower", implementation="here")
    floor = replace(score, value=0.5, low=0.3, high=0.7)
    assert sanity.beats_real_images(score, floor)
    assert not sanity.beats_real_images(replace(score, high=0.31), floor)
    assert not sanity.beats_real_images(floor, floor)


def test_an_overseer_asks_for_scored_images_once_and_not_first(tmp_path: Path) -> None:
    places = set()
    for number in range(40):
        overseer = Overseer(
            secret=str(number), batch=4, classes=10, calls=3, keep=tmp_path / "images",
            scored={"row": ScoredImages(count=12, seed=7)},
        )  # fmt: skip
        asked = [overseer.draw("row", 4) for _ in range(8)]
        public = [place for place, request in enumerate(asked) if request.seed == 7]
        assert len(public) == 1 and len({request.first for request in asked}) == 1
        assert len({request.keep for request in asked}) == 1
        places.add((public[0], asked[0].first))
    assert {place for place, _ in places} == {2, 3, 4} and {first for _, first in places} == {0, 4, 8}


@pytest.mark.parametrize(
    ("left", "found"), [((0, 9, 0), True), ((9, 0, 9), True), ((9, 0, 0), True), ((0, 0, 0), False), ((9, 9, 9), False)]
)
def test_what_a_call_leaves_for_the_next_to_give_back_is_seen(left: tuple[int, int, int], found: bool) -> None:
    """Whichever call it began with."""
    calls = [
        Reply(row="a", images_sha256="", tokens_sha256=None, outside=Outside(after_steps=(), left=many << 20))
        for many in left
    ]
    said = honesty.across_calls(calls, None, batch=8, dtype="float32")
    assert ["given back by the next" in one for one in said] == [True] * found


def test_a_peak_that_the_plan_cannot_have_was_lowered(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    """On a GPU a block that lived before the call and is freed within it would lower the peak; a CPU's profiler ignores it."""
    run, found, _ = run_and_found
    looks = found["variant@d2"].looks
    assert looks is not None and looks.peaks.allocated is not None
    lower = replace(looks, peaks=replace(looks.peaks, allocated=looks.peaks.weights + 1000))
    assert "its peak is 1,000 bytes" in reasons(run, replace(found["variant@d2"], looks=lower))


STRAINS = [field.name for field in fields(Strain)]

RECORDS = sorted((Path(__file__).parents[1] / "reports" / "tiny").glob("*/records"))


def _pairs(record: Record, regime: str) -> list[Pair]:
    """A record's calls with their neighbours, as far as it has them."""
    assert record.timing is not None
    columns = {one.column: one for one in record.timing.columns if one.regime == regime}
    if columns.keys() < COLUMNS.keys() or any(one.beside is None for one in columns.values()):
        return []
    ran = next((one for one in record.timing.calls if one.regime == regime), None)

    def calls(samples: str) -> list[Call]:
        told = zip(*(chain.from_iterable(getattr(columns[name], samples)) for name in COLUMNS), strict=True)
        found = []
        for seconds in told:
            times = Times(clock="", steps=(), began=0.0, ended=seconds[-1], **dict(zip(COLUMNS, seconds, strict=True)))
            found.append(Call(times=times, strain=None, seen=seconds[-1], sound=True))
        return found

    own = calls("rounds")
    if ran is not None:
        strains = [
            Strain(**dict(zip(STRAINS, one, strict=True)))
            for one in zip(*(chain.from_iterable(getattr(ran, name)) for name in STRAINS), strict=True)
        ]
        own = [replace(call, strain=strain) for call, strain in zip(own, strains, strict=True)]
    return [Pair(row=row, full=full) for row, full in zip(own, calls("beside"), strict=True)]


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.parent.name)
def test_no_recorded_row_has_its_time_beside_its_network(folder: Path) -> None:
    """Nor, by a wide margin, would it with half of what is allowed."""
    model, looked_at = presets.preset("tiny").spec, 0
    for record in load_records([folder]).records:
        decides = record.row.row.startswith("skipvar")
        plan = compile_plan(model, rows.resolve(record.row.row, model).policies) if decides else None
        previews = len(plan.decision.previews) if plan and plan.decision else 0
        for regime in sanity.REGIMES:
            pairs = _pairs(record, regime) if record.timing else []
            looked_at += bool(pairs)
            assert list(sanity._elsewhere(pairs, most=sanity.ELSEWHERE["cpu"] / 2, previews=previews)) == [], (
                record.row.row
            )
    assert looked_at or folder.parent.name not in ("all-methods", "trained")


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.parent.name)
def test_no_recorded_denominator_was_slowed(folder: Path) -> None:
    """Of each plugin, over all processes in which it ran."""
    processes: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in load_records([folder]).records:
        for drawn in record.timing.drawn if record.timing else ():
            for plugin in record.row.plugins:
                processes.setdefault(plugin.name, {})[drawn.secret] = list(drawn.full_alone)
    for plugin, found in processes.items():
        assert not denominators.is_slowed([pairs for pairs in found.values() if pairs]), plugin
