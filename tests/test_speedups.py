"""Speedups on a page: rows of one plan are one sample, marks hold for the page, and what is doubtful has its command."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from record_factory import full_records, make_record

from varbench import record as r
from varbench.base import stats
from varbench.record import Record, load_records
from varbench.show.advice import WHO_IS_BUSY, advice, rounds_for
from varbench.show.columns import table_of
from varbench.show.compare import compare
from varbench.show.entries import Block, Entry, blocks_of, judge_speed
from varbench.show.speedups import beside, kind_of_work
from varbench.show.table import as_table

REPORTS = Path(__file__).parents[1] / "reports" / "tiny"
FIRST_SCHEMA = Path(__file__).parent / "data" / "first_schema"


def timed(record: Record, *rounds: float, noise: float = 0.0, rng: random.Random | None = None) -> Record:
    """The record with this speedup in each round, whatever the seconds."""
    assert record.timing is not None
    columns = []
    for column in record.timing.columns:
        full = tuple((1.0, 1.1, 0.9) for _ in rounds)
        own = tuple(tuple(second / ratio for second in some) for some, ratio in zip(full, rounds, strict=True))
        columns.append(dataclasses.replace(column, beside=full, rounds=own))
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, columns=tuple(columns)))


def on(record: Record, weights: str) -> Record:
    """Rows on one set of weights share their processes."""
    return dataclasses.replace(record, weights=(r.WeightFile(role="main", name="a", sha256=weights * 64),))


def page(*records: Record) -> Block:
    (block,) = blocks_of([*full_records(noise=0.0), *records])
    return block


def entry(block: Block, name: str) -> Entry:
    return next(one for one in block.entries if one.name == name)


A, B, C = "variant@d8", "fixed_ratio@p01/d8", "fixed_ratio@p05/d8"


def three(*, last: tuple[float, ...] = (1.5, 1.54, 1.46)) -> list[Record]:
    return [
        on(timed(make_record(A), 1.5, 1.53, 1.47), "a"),
        on(timed(make_record(B), 1.52, 1.49, 1.5), "b"),
        on(timed(make_record(C), *last), "c"),
    ]


# Pools


def test_rows_of_one_plan_are_one_sample_of_processes() -> None:
    block = page(*three())
    speeds = [entry(block, name).speeds["lossless"] for name in (A, B, C)]
    assert speeds[0].ratio == speeds[1].ratio == speeds[2].ratio
    logs = [math.log(one) for one in (1.5, 1.53, 1.47, 1.52, 1.49, 1.5, 1.5, 1.54, 1.46)]
    assert speeds[0].ratio.value == pytest.approx(stats.over_rounds(logs).value)
    assert speeds[0].ratio.degrees == 8
    assert speeds[0].processes == 9
    assert all(speed.own.width > 2 * speed.ratio.width for speed in speeds[::2])
    assert speeds[0].own.value == pytest.approx((1.5 * 1.53 * 1.47) ** (1 / 3))


def test_latency_is_told_in_times_faster_by_the_estimator_of_the_speedup() -> None:
    """From the pairs of all rows of a plan, whatever their seconds come to on a day; and on what machine they are."""
    block = page(*three())
    columns, rows = table_of(block)
    place = [column.key for column in columns].index("latency_speedup")
    shown = {entry.name: cells[place] for entry, cells in zip(block.entries, rows, strict=True)}
    found = entry(block, A).speeds["lossless"].ratio
    assert shown[A].text == shown[B].text == "1.50x" and shown["full_var"].text == "1.00x"
    assert shown[A].interval is not None and shown[A].interval.value == pytest.approx(found.value)
    assert shown[A].interval.width >= found.width, "rounds differ too"
    assert shown[A].note.endswith("where the full model takes 1.00 s to 1.00 s")


def test_rows_that_share_a_process_are_one_there() -> None:
    """Their calls have the same neighbours: what the process did to one it did to the other."""
    same = [on(record, "a") for record in three()]
    speed = entry(page(*same), A).speeds["lossless"]
    assert (speed.processes, speed.ratio.degrees) == (3, 2)


def changed_plan(record: Record, **changes: Any) -> Record:
    assert record.plan is not None
    return dataclasses.replace(record, plan=dataclasses.replace(record.plan, **changes))


@pytest.mark.parametrize(
    "other",
    [
        lambda record: changed_plan(record, digest="other"),
        lambda record: changed_plan(record, picks=True),
        lambda record: changed_plan(record, picks=None),
        lambda record: dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, kernel="flash")),
        lambda record: dataclasses.replace(record, plan=None),
        lambda record: dataclasses.replace(record, validity=r.Validity(verdict=r.Verdict.INVALID, reasons=("a lie",))),
    ],
    ids=["plan", "picks", "old", "kernel", "no plan", "invalid"],
)
def test_what_may_differ_in_speed_is_in_no_pool(other: Any) -> None:
    first, second, third = three()
    block = page(first, second, other(third))
    assert entry(block, A).speeds["lossless"].processes == 6
    assert entry(block, C).speeds["lossless"].processes == 3
    assert entry(block, C).speeds["lossless"].ratio == entry(block, C).speeds["lossless"].own


def test_two_rows_that_pick_are_not_pooled_though_their_plans_agree() -> None:
    block = page(*(changed_plan(record, picks=True) for record in three()))
    assert {entry(block, name).speeds["lossless"].processes for name in (A, B, C)} == {3}


def test_a_row_whose_own_figure_leaves_its_plans_is_named() -> None:
    assert not [notice for notice in advice(page(*three())) if "leaves" in notice.text]
    (found,) = [notice for notice in advice(page(*three(last=(2.0, 2.01, 1.99)))) if "leaves" in notice.text]
    assert C in found.text and "2.00x" in found.text
    assert found.next_command is not None and f"--plugins {C}" in found.next_command


def test_memory_is_that_of_the_plan_and_another_figure_of_a_row_is_named() -> None:
    rows = [
        dataclasses.replace(record, memory=dataclasses.replace(record.memory, torch_allocated_bytes=count))
        for record, count in zip(three(), (1000, 1000, 1001), strict=True)
        if record.memory is not None
    ]
    block = page(*rows)
    assert [entry(block, name).memory("peak_bytes") for name in (A, B, C)] == [1000] * 3
    (found,) = [notice for notice in advice(block) if "peak memory" in notice.text]
    assert f"{C} 1,001 B against 1,000 B" in found.text


def test_rows_of_the_full_plan_are_the_check_of_equal_plans() -> None:
    copies = [
        on(timed(make_record(f"{name}@full"), *rounds), name[0])
        for name, rounds in (("a", (0.99, 1.01, 1.0)), ("b", (1.0, 1.02, 0.98)))
    ]
    block = page(*copies)
    assert block.itself is not None
    assert block.itself.low < 1 < block.itself.high
    assert [judge_speed(entry(block, one.row.row), "lossless") for one in copies] == ["same", "same"]
    assert "The full model against itself: 1.00x" in as_table([*full_records(noise=0.0), *copies])


# Marks


def test_a_difference_that_passes_alone_does_not_pass_beside_many() -> None:
    """One p of 0.03 in a page of eight plans is what chance brings."""
    # Upstream is the other question of each plan.
    some = [timed(make_record("m0@d8"), 1.04, 1.05, 1.03)]
    assert 0.01 < entry(page(*some), "m0@d8").speeds["lossless"].ratio.p < 0.05 / 2
    assert judge_speed(entry(page(*some), "m0@d8"), "lossless") == "better"
    rest = [changed_plan(timed(make_record(f"x{n}@d8"), 0.99, 1.01, 1.0), digest=f"x{n}") for n in range(12)]
    assert judge_speed(entry(page(*some, *rest), "m0@d8"), "lossless") == "same"


def test_rows_of_one_plan_have_one_mark() -> None:
    block = page(*three())
    assert {judge_speed(entry(block, name), "lossless") for name in (A, B, C)} == {"better"}


def waited(record: Record, *rounds: tuple[float, ...]) -> Record:
    """The record with the share of its time for which each of its pairs was held up; a pair that stalled looks 9 times as fast."""
    assert record.timing is not None
    columns = tuple(
        dataclasses.replace(
            column,
            rounds=tuple(
                tuple(second / 9 if share > 0.05 else second for second, share in zip(*some, strict=True))
                for some in zip(column.rounds, rounds, strict=True)
            ),
        )
        for column in record.timing.columns
    )
    nothing = tuple((0.0,) * len(some) for some in rounds)
    calls = tuple(
        r.HeldUp(
            regime=regime, pairs=rounds, cpu_seconds=nothing, waited_seconds=nothing, stolen_seconds=nothing,
            switches=tuple((0,) * len(some) for some in rounds),
        )
        for regime in ("throughput", "latency")
    )  # fmt: skip
    return dataclasses.replace(
        record, timing=dataclasses.replace(record.timing, columns=columns, calls=calls, held_up=0.5)
    )


QUIET = (0.0, 0.01, 0.03)


def test_pairs_of_which_a_call_stalled_are_left_out_where_enough_processes_have_others() -> None:
    """By how long calls waited. Their seconds are not asked: a pair that waited for nothing counts, whatever it came to."""
    plain = entry(page(*(waited(record, QUIET, QUIET, QUIET) for record in three())), A).speeds["lossless"]
    records = three()
    busy = [
        waited(records[0], (0.0, 0.9, 0.0), (0.4, 0.4, 0.4), QUIET),
        waited(records[1], QUIET, (0.06, 0.0, 0.0), QUIET),
        waited(records[2], QUIET, QUIET, QUIET),
    ]
    block = page(*busy)
    speed = entry(block, A).speeds["lossless"]
    assert speed.ratio.value == pytest.approx(plain.ratio.value, rel=0.01)
    assert speed.half_width < 0.04
    assert (plain.processes, speed.processes, speed.left_out) == (9, 8, 5)
    assert 0 < speed.ratio.down < -math.log(0.97), "by those of 3 % that count"
    assert judge_speed(entry(block, A), "lossless") == "better"
    columns, rows = table_of(block)
    place = [column.key for column in columns].index("speedup")
    assert any("5 pairs of calls of which one was held up are left out" in row[place].note for row in rows)


def test_one_pair_that_did_not_stall_is_none_to_leave_the_others_out_for() -> None:
    """Of a quick run's one process. What one pair says has no interval, and so would be taken for sure."""
    for calm, others in ((1, 2), (2, 1)):
        shares = (0.0,) * calm + (0.9,) * others
        block = page(waited(timed(make_record(A), 1.5), shares))
        speed = entry(block, A).speeds["lossless"]
        assert speed.left_out == (0 if calm == 1 else others)
        assert (speed.ratio.high / speed.ratio.low > 2) is (calm == 1)


def test_with_too_few_that_did_not_stall_all_count_and_the_interval_knows() -> None:
    """Half-widths of three processes, and what a wait of 0.4 of the time may have done on top of it: a median of each process."""
    all_busy = (0.0, 0.9, 0.0), (0.4, 0.4, 0.4), (0.4, 0.4, 0.4)
    block = page(*(on(waited(record, *all_busy), "a") for record in three()))
    speed = entry(block, A).speeds["lossless"]
    assert (speed.processes, speed.left_out, speed.held_up) == (3, 0, True)
    assert speed.ratio.down == speed.ratio.up == pytest.approx(-2 / 3 * math.log(0.6)), (
        "one pair of three moves no median"
    )
    assert judge_speed(entry(block, A), "lossless") == "same"


def delayed(record: Record, *, full: float = 0.0, row: float = 0.0) -> Record:
    """The record with so much of every call's time lost."""
    assert record.timing is not None
    pairs = tuple(((full, row),) * len(some) for some in record.timing.columns[0].rounds)
    calls = tuple(
        r.HeldUp(
            regime=regime, cpu_seconds=(), waited_seconds=(), stolen_seconds=(), switches=(), delayed=pairs
        )
        for regime in ("throughput", "latency")
    )  # fmt: skip
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, calls=calls))


def test_a_delay_of_one_side_moves_the_interval_in_one_direction() -> None:
    """Without it the full model would have been faster, or the row; figure and error stay what they were."""
    rounds = (1.5, 1.53, 1.47, 1.5, 1.5, 1.5)
    (quiet, slow_full, slow_row) = (
        entry(page(delayed(timed(make_record(A), *rounds), **lost)), A).speeds["lossless"].ratio
        for lost in ({}, {"full": 0.1}, {"row": 0.1})
    )
    assert quiet == entry(page(timed(make_record(A), *rounds)), A).speeds["lossless"].ratio, "to the digit"
    assert slow_full.low == pytest.approx(0.9 * quiet.low) and slow_full.high == quiet.high
    assert slow_row.high == pytest.approx(quiet.high / 0.9) and slow_row.low == quiet.low
    assert {one.value for one in (quiet, slow_full, slow_row)} == {quiet.value}


@pytest.mark.parametrize(("lost", "mark"), [(0.05, "better"), (0.3, "better"), (0.4, "same"), (2.5, "same")])
def test_a_mark_follows_from_the_interval_where_calls_were_held_up(lost: float, mark: str) -> None:
    """Half as fast again is more than a third of the full model's time, and not more than four tenths."""
    block = page(delayed(timed(make_record(A), 1.5, 1.51, 1.49, 1.5, 1.5, 1.5), full=lost))
    assert judge_speed(entry(block, A), "lossless") == mark
    columns, rows = table_of(block)
    place = [column.key for column in columns].index("speedup")
    note = next(cells[place].note for one, cells in zip(block.entries, rows, strict=True) if one.name == A)
    assert f"were held up, without which it may be {min(lost, stats.MOST_DELAYED):.1%} lower or 0.0% higher" in note
    found = [notice for notice in advice(block) if "not known" in notice.text]
    assert len(found) == 1 and "of calls that were held up: 1 of them, which a quiet machine mends" in found[0].text
    rounds = rounds_for(entry(block, A).speeds["lossless"], 0.03)
    assert found[0].next_command is not None
    if lost == 0.05:
        assert rounds is not None and 6 < rounds < 12, (
            "half of it is less than 3 %: what is left takes more than were made"
        )
        assert f"--rounds {rounds}" in found[0].next_command
    else:
        assert rounds is None and found[0].next_command == WHO_IS_BUSY, "no round makes a wait smaller"


def stalled(record: Record, held_up: float) -> Record:
    assert record.timing is not None
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, held_up=held_up))


def test_older_records_tell_what_was_usual_of_a_rows_calls_and_rows_of_its_plan_share_it() -> None:
    first, second, third = three()
    block = page(stalled(first, 0.06), second, stalled(third, 0.04))
    ratios = {entry(block, name).speeds["lossless"].ratio for name in (A, B, C)}
    (ratio,) = ratios
    assert ratio.down == ratio.up == pytest.approx(-math.log(0.94) / 3)


def test_a_full_model_that_was_held_up_moves_what_is_told_against_it() -> None:
    lossless, upstream = full_records(noise=0.0)
    (block,) = blocks_of([lossless, stalled(upstream, 0.06), *three()])
    speeds = entry(block, A).speeds
    assert (speeds["lossless"].held_up, speeds["upstream"].held_up) == (False, True)
    assert speeds["upstream"].ratio.up == pytest.approx(-math.log(0.94))


# Advice


def alone(name: str, *rounds: float) -> Record:
    """A row whose plan no other row has."""
    return changed_plan(on(timed(make_record(name), *rounds), name[0]), digest=name)


def test_wide_figures_have_one_line_the_widest_first_and_a_command_that_would_do() -> None:
    block = page(
        alone("a@d8", 1.4, 1.5, 1.6, 1.45, 1.55),
        alone("b@d8", 1.38, 1.5, 1.62, 1.44, 1.56),
        alone("c@d8", 1.5, 1.51, 1.49),
    )
    widths = {name: entry(block, name).speeds["lossless"].half_width for name in ("a@d8", "b@d8")}
    (found,) = advice(block)
    assert found.text == (
        f"2 of 3 speedups are not known to ± 3.0%, the widest first: b@d8 ± {widths['b@d8']:.1%}, a@d8 ± {widths['a@d8']:.1%}"
    )
    assert found.next_command is not None and "--plugins b@d8,a@d8" in found.next_command
    needed = {name: rounds_for(entry(block, name).speeds["lossless"], 0.03) for name in widths}
    assert needed["a@d8"] is not None and needed["b@d8"] is not None and needed["a@d8"] < needed["b@d8"]
    assert f"--rounds {needed['b@d8']}" in found.next_command
    rounds = needed["a@d8"]
    again = [1.4, 1.5, 1.6, 1.45, 1.55] * 20
    enough = stats.paired_ratio([[one] for one in again[:rounds]], [[1.0]] * rounds)
    assert math.sqrt(enough.high / enough.low) - 1 < 0.035


def test_narrow_figures_have_no_line_and_a_greater_precision_asks_for_more() -> None:
    def narrow(precision: float) -> Record:
        record = timed(make_record(A), 1.5, 1.51, 1.49, 1.5, 1.5, 1.5)
        return dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, precision=precision))

    assert advice(page(narrow(0.03))) == []
    assert any("not known to ± 0.1%" in notice.text for notice in advice(page(narrow(0.001))))


def test_what_rounds_cannot_mend_is_counted_and_the_rest_has_its_command() -> None:
    hopeless = alone("b@d8", 1.0, 2.0, 1.5, 3.0)
    (found,) = advice(page(alone("a@d8", 1.4, 1.5, 1.6, 1.45, 1.55), hopeless))
    assert found.text.endswith("; for 1 of them 50 rounds would not do, a quieter machine might")
    assert found.next_command is not None and "--plugins a@d8 " in found.next_command
    (found,) = advice(page(hopeless))
    assert found.text.endswith("; 50 rounds would not do, a quieter machine might")
    assert found.next_command is not None and found.next_command.startswith("ps ")


def test_one_process_is_told_of_however_alike_its_calls_and_few_are_not_nor_is_a_quick_look() -> None:
    """Student's interval over three processes knows how few they are; that of one process's calls knows nothing of the next."""
    assert advice(page(timed(make_record(A), 1.5, 1.5, 1.5))) == []
    (found,) = advice(page(timed(make_record(A), 1.5)))
    assert found.text == f"1 of 1 speedups are not known to ± 3.0%, the widest first: {A} ± 0.0% of one process"
    assert found.next_command is not None and "--rounds 8" in found.next_command
    quick = [
        dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, quick=True))
        for record in [*full_records(), timed(make_record(A), 1.5)]
    ]
    assert advice(blocks_of(quick)[0]) == []


@pytest.mark.parametrize(
    ("load", "discarded", "busy"), [(1.9, 0, False), (3.5, 0, True), (0.1, 200, True), (0.1, 2, False)]
)
def test_a_busy_machine_has_one_hint_which_is_part_of_the_line_of_wide_figures(
    load: float, discarded: int, busy: bool
) -> None:
    records = [
        dataclasses.replace(
            record,
            environment=dataclasses.replace(record.environment, load=load, cores=2),
            timing=dataclasses.replace(record.timing, discarded=discarded),
        )
        for record in three()
        if record.timing is not None
    ]
    found = advice(page(*records))
    assert len(found) == busy
    if busy:
        assert found[0].next_command is not None and found[0].next_command.startswith("ps ")
    untimed = (dataclasses.replace(record, timing=None, missing={"timing": "left out"}) for record in records)
    assert not any("busy" in notice.text for notice in advice(page(*untimed))), "it says nothing of quality"
    (found,) = advice(page(*records, alone("a@d8", 1.4, 1.5, 1.6, 1.45, 1.55)))
    assert found.text.startswith("1 of 4 speedups") and ("the machine was busy" in found.text) == busy
    assert found.next_command is not None and "--plugins a@d8 " in found.next_command


# Two runs of one code


def two_runs() -> Iterator[list[Record]]:
    """Runs of one code on one machine, one after the other, which met its two states in other shares."""
    for number, rows in enumerate(json.loads((Path(__file__).parent / "data" / "two_runs.json").read_text())):
        made = []
        for name, seen in rows.items():
            record = dataclasses.replace(make_record(name), run=f"run-{number}")
            assert record.timing is not None
            columns = tuple(
                dataclasses.replace(
                    column, **{side: tuple(map(tuple, seen[column.regime][side])) for side in ("rounds", "beside")}
                )
                for column in record.timing.columns
                if (column.column, column.regime) in (("transformer", "throughput"), ("end_to_end", "latency"))
            )
            timing = dataclasses.replace(record.timing, columns=columns)
            made.append(on(dataclasses.replace(record, timing=timing), seen["weights"]))
        yield made


def slowed(record: Record, times: float) -> Record:
    assert record.timing is not None
    columns = tuple(
        dataclasses.replace(column, rounds=tuple(tuple(times * one for one in some) for some in column.rounds))
        for column in record.timing.columns
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, columns=columns))


def verdicts(old: list[Record], new: list[Record]) -> dict[str, set[str]]:
    return {
        figure: {change.verdict for change in compare(old, new).changes if change.figure == figure}
        for figure in ("speed", "latency")
    }


def test_two_runs_that_met_other_states_of_the_machine_have_no_verdict() -> None:
    """By its processes alone a batch of 1 of d8 is slower with p = 0.001."""
    old, new = two_runs()
    assert verdicts(old, new) == {"speed": {"same"}, "latency": {"same"}}
    slower = [one if "d8" not in one.row.row else slowed(one, 1.1) for one in new]
    assert verdicts(old, slower)["speed"] == {"same", "regressed"}


def test_the_interval_of_a_latency_is_over_rounds_where_these_differ_more_than_their_processes() -> None:
    latencies = [beside([one for one in run if "d8" in one.row.row], "end_to_end", "latency") for run in two_runs()]
    assert [one.degrees for one in latencies if one is not None] == [11, 2]


def of_round(record: Record, number: int) -> Record:
    assert record.timing is not None
    columns = tuple(
        dataclasses.replace(
            column,
            rounds=column.rounds[number : number + 1],
            beside=column.beside and column.beside[number : number + 1],
        )
        for column in record.timing.columns
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, columns=columns, calls=()))


def test_runs_with_one_process_a_row_are_not_judged() -> None:
    """Same code, and one process cannot say how far the next one is."""
    recorded = load_records([FIRST_SCHEMA]).records
    alone = [
        record for record in recorded if record.timing is not None and kind_of_work(record) not in _shared(recorded)
    ]
    assert len(alone) > 5
    sets = [[of_round(record, number) for record in alone] for number in (0, 1)]
    found = {change.verdict for change in compare(*sets).changes if change.figure in ("speed", "latency")}
    assert found == {"not judged"}


def _shared(records: Sequence[Record]) -> set[object]:
    """Kinds of work that several rows do, whose processes are one sample."""
    kinds = Counter(kind for record in records if (kind := kind_of_work(record)) is not None)
    return {kind for kind, count in kinds.items() if count > 1}


def test_recorded_rows_are_read_beside_the_full_model() -> None:
    (record,) = [one for one in load_records([REPORTS / "trained" / "records"]).records if one.row.row == A]
    found = beside([record], "transformer", "throughput")
    assert found is not None and found.degrees == 2
    assert found.value == pytest.approx(1.7, rel=0.1)
