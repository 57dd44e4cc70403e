"""What no honest row shows: each finding by itself, and every shipped method within its bounds."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import Script, a_run, conduct, scripted

from varbench.base import stats
from varbench.data.shapes import Shapes
from varbench.measure.calls import Times
from varbench.measure.overseer import Lap, Overseer, Oversight, ScoredImages
from varbench.measure.process_memory import private_bytes
from varbench.measure.speed import Call, Pair, SpeedRound
from varbench.quality import copies
from varbench.quality.likeness import chance
from varbench.record import Record, Score, load_records
from varbench.rows import FULL
from varbench.rows.manager import manager
from varbench.run import sanity
from varbench.run.findings import Findings
from varbench.run.prepare import Run


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
    "actvar": "not trained for long enough to be reported",
    "llamagen": "not trained for long enough to be reported",
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
                    sides.append(Call(times=Times(clock="", steps=(), began=0.0, ended=0.0, **told), strain=None))
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


@pytest.fixture
def run_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, dict[str, Findings], Script]:
    with scripted(monkeypatch, seconds={"variant@d2": 0.5}) as script:
        run = a_run(tmp_path, plugins="variant@d2", rounds=3)
        execution = conduct(run, tmp_path)
        execution.everything()
    return run, execution.found, script


def reasons(run: Run, found: Findings) -> str:
    return "; ".join(sanity.reasons(run, run.rows["variant@d2"], found, {}))


def with_oversight(found: Findings, **changes: object) -> Findings:
    """The same rounds, seen otherwise."""
    speed = {}
    for number, one in found.speed.items():
        assert isinstance(one.oversight, Oversight)
        speed[number] = replace(one, oversight=replace(one.oversight, **changes))  # type: ignore[arg-type]
    return replace(found, speed=speed)


def test_an_honest_row_gives_no_reason(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    run, found, _ = run_and_found
    assert reasons(run, found["variant@d2"]) == ""


def test_each_lie_of_the_clock_has_its_reason(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    run, found, _ = run_and_found
    own = found["variant@d2"]
    lap = Lap(seed=1, answer="a", stated=0.3, seen=0.31, sound=True)
    assert reasons(run, with_oversight(own, laps=(lap,) * 3)) == ""
    assert "outside" in reasons(run, with_oversight(own, laps=(replace(lap, sound=False),) * 3))
    said = reasons(run, with_oversight(own, laps=(replace(lap, stated=0.02),) * 3))
    assert "states 0.020 s a call, and 0.310 s passed" in said
    said = reasons(run, with_oversight(own, busy_between=5.0, busy_within=10.0))
    assert "5.0 s of processor time between calls" in said


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
    assert "only 0.5" in said, "what the network saves is not saved by the whole call"


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


def test_a_peak_that_the_plan_cannot_have_was_lowered(run_and_found: tuple[Run, dict[str, Findings], Script]) -> None:
    """On a GPU a block that lived before the call and is freed within it would lower the peak; a CPU's profiler ignores it."""
    run, found, _ = run_and_found
    looks = found["variant@d2"].looks
    assert looks is not None and looks.peaks.allocated is not None
    lower = replace(looks, peaks=replace(looks.peaks, allocated=looks.peaks.weights + 1000))
    assert "its peak is 1,000 bytes" in reasons(run, replace(found["variant@d2"], looks=lower))
