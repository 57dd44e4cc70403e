"""Comparison: unlike protocols refused, real changes told from noise, limits broken or kept."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest
from record_factory import full_records, make_record

from varbench import record as records
from varbench.commands import compare as command
from varbench.errors import UserError
from varbench.show.compare import as_json, as_table, compare


def changed(record, **protocol):
    return dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, **protocol))


def verdicts(comparison):
    return {(change.row, change.figure): change.verdict for change in comparison.changes}


def test_a_run_against_itself_is_the_same_everywhere():
    run = [*full_records(), make_record()]
    found = verdicts(compare(run, run, fail_on="speed:5%,fid:0.2"))
    assert {verdict for key, verdict in found.items() if key[0] == "variant@d8"} == {"same"}
    assert ("variant@d8", "speed") in found
    assert set(found.values()) == {"same", "not judged"}
    assert not compare(run, run, fail_on="speed:5%,fid:0.2").failed


def test_improved_and_regressed_are_told_apart():
    old, new = [make_record(seconds=0.5, quality=5.0)], [make_record(seconds=0.4, quality=6.0)]  # the same weights
    found = verdicts(compare(old, new))
    assert found["variant@d8", "speed"] == "improved"
    assert found["variant@d8", "FD-shapes"] == "regressed"
    assert found["variant@d8", "class accuracy"] == "regressed"
    assert found["variant@d8", "state"] == "same"
    back = verdicts(compare(new, old))
    assert back["variant@d8", "speed"] == "regressed"
    assert back["variant@d8", "FD-shapes"] == "improved"


@pytest.mark.parametrize(
    ("held_up", "verdict"), [(0.01, "improved"), (0.1, "improved"), (0.3, "same"), (None, "improved")]
)
def test_what_calls_waited_for_is_in_the_interval_of_a_change(held_up, verdict):
    """A fifth less time is more than a tenth of waiting, and not more than three."""
    old, new = make_record(seconds=0.5), make_record(seconds=0.4)
    new = dataclasses.replace(new, timing=dataclasses.replace(new.timing, held_up=held_up))
    assert verdicts(compare([old], [new]))["variant@d8", "speed"] == verdict
    assert verdicts(compare([old], [new]))["variant@d8", "state"] == "same"


def test_weights_that_were_trained_anew_give_no_verdict_on_quality_from_one_seed():
    old, new = make_record(quality=5.0), make_record(quality=9.0)
    new = dataclasses.replace(new, training=dataclasses.replace(new.training, key="trained anew"))
    assert verdicts(compare([old], [new]))["variant@d8", "FD-shapes"] == "same"
    assert not compare([old], [new], fail_on="fid:0.2").failed
    again = [changed(record, seed=1) for record in (old, new)]
    found = verdicts(compare([old, again[0]], [new, again[1]]))
    assert found["variant@d8", "FD-shapes"] == "regressed"


def test_a_change_within_the_interval_or_below_the_floor_is_none():
    within = compare([make_record(quality=5.0, half_width=0.5)], [make_record(quality=5.3, half_width=0.5)])
    assert verdicts(within)["variant@d8", "FD-shapes"] == "same"
    below = compare([make_record(seconds=0.500, noise=0.0001)], [make_record(seconds=0.509, noise=0.0001)])
    assert verdicts(below)["variant@d8", "speed"] == "regressed"  # 1.8 %
    least = compare([make_record(seconds=0.500, noise=0.0001)], [make_record(seconds=0.504, noise=0.0001)])
    assert verdicts(least)["variant@d8", "speed"] == "same"  # 0.8 % is nobody's concern


def test_old_new_and_change_are_of_one_estimator_and_of_the_speedup():
    old, new = make_record(seconds=0.5), make_record(seconds=0.4)
    for change in compare([old], [new]).changes:
        if change.figure in ("speed", "latency"):
            assert change.unit == "x"
            assert change.old == pytest.approx(1 / 0.5, rel=0.02)
            assert change.new / change.old - 1 == pytest.approx(change.change.value)
    assert "2.0" in as_table(compare([old], [new]))


def test_a_machine_that_is_slower_that_day_is_no_change_and_its_seconds_are_not_judged():
    old = [*full_records(seconds=1.0), make_record(seconds=0.5)]
    new = [*full_records(seconds=1.4), make_record(seconds=0.7, full_seconds=1.4)]
    found = verdicts(compare(old, new))
    assert found["variant@d8", "speed"] == found["variant@d8", "latency"] == "same"
    assert found["full_var", "speed"] == "not judged"
    assert not compare(old, new, fail_on="speed:1%").failed


def test_any_byte_is_a_change_and_on_a_gpu_a_hundredth():
    def with_bytes(count, device="cpu"):
        record = make_record()
        record = dataclasses.replace(record, environment=dataclasses.replace(record.environment, device=device))
        return [dataclasses.replace(record, memory=dataclasses.replace(record.memory, torch_allocated_bytes=count))]

    comparison = compare(with_bytes(50_000_000), with_bytes(50_000_001))
    (change,) = [change for change in comparison.changes if change.figure == "memory"]
    assert change.verdict == "regressed"
    assert "1 B more" in as_table(comparison)
    assert verdicts(compare(with_bytes(50_000_001), with_bytes(50_000_000)))["variant@d8", "memory"] == "improved"
    on_a_gpu = [with_bytes(count, "NVIDIA H100") for count in (50_000_000, 50_000_001, 51_000_000)]
    assert verdicts(compare(*on_a_gpu[:2]))["variant@d8", "memory"] == "same"
    assert verdicts(compare(*on_a_gpu[1:]))["variant@d8", "memory"] == "regressed"
    assert "none" in as_table(compare(with_bytes(50_000_000), with_bytes(50_000_000)))


def test_what_a_seed_does_to_both_sides_is_in_no_change():
    """Quality differs by far more between seeds than between the two codes."""
    old, new = (
        [
            dataclasses.replace(
                make_record(quality=quality + less, half_width=0.01),
                protocol=dataclasses.replace(make_record().protocol, seed=seed),
            )
            for seed, quality in enumerate((4.0, 5.0, 6.0))
        ]
        for less in (0.0, 0.2)
    )
    assert verdicts(compare(old, new))["variant@d8", "FD-shapes"] == "regressed"


def test_one_score_of_many_that_leaves_its_interval_is_chance():
    """One in twenty does, and a row has several: two runs with other images would hardly ever be the same."""
    rows = [f"variant@d{depth}" for depth in range(2, 14)]
    old = [make_record(row, quality=5.0) for row in rows]
    new = [make_record(row, quality=5.35 if row == "variant@d8" else 5.0) for row in rows]  # 2.4 of its errors
    assert verdicts(compare(old[6:7], new[6:7]))["variant@d8", "FD-shapes"] == "regressed"
    assert verdicts(compare(old, new))["variant@d8", "FD-shapes"] == "same"
    new[6] = make_record("variant@d8", quality=5.6)
    assert verdicts(compare(old, new))["variant@d8", "FD-shapes"] == "regressed"


@pytest.mark.parametrize(
    ("seconds", "quality", "limits", "broken"),
    [
        (0.5, 5.0, "speed:5%,fid:0.2", []),
        (0.52, 5.0, "speed:5%,fid:0.2", []),  # 4 % slower
        (0.6, 5.0, "speed:5%,fid:0.2", ["speed:5%"]),
        (0.6, 5.0, "speed:25%", []),
        (0.4, 5.0, "speed:5%", []),  # faster breaks nothing
        (0.5, 6.0, "speed:5%,fid:0.2", ["fid:0.2"]),
        (0.5, 6.0, "fd-shapes:2", []),
        (0.5, 4.0, "fid:0.2", []),  # better breaks nothing
    ],
)
def test_limits_break_on_what_is_shown_to_be_worse(seconds, quality, limits, broken):
    comparison = compare([make_record()], [make_record(seconds=seconds, quality=quality)], fail_on=limits)
    assert [change.broken for change in comparison.changes if change.broken] == broken
    assert comparison.failed == bool(broken)


def test_a_row_that_stops_being_valid_regresses():
    crashed = make_record(status=records.Status.CRASHED)
    comparison = compare([make_record()], [crashed], fail_on="")
    assert [change.verdict for change in comparison.changes] == ["regressed"]
    both = compare([make_record(), make_record("variant@d4")], [crashed, make_record("variant@d4")], fail_on="speed:5%")
    assert both.failed


@pytest.mark.parametrize(
    "protocol", [{"batch": 32}, {"cfg": 2.0}, {"dtype": "float32"}, {"quick": True}, {"images": 500}]
)
def test_unlike_protocols_are_refused_with_both_values(protocol):
    ((name, value),) = protocol.items()
    with pytest.raises(UserError, match=f"unlike protocols.*{name} .* and {value}"):
        compare([make_record()], [changed(make_record(), **protocol)])


def test_other_feature_weights_are_refused():
    score = make_record().quality.scores[0]
    other = records.Quality(scores=(dataclasses.replace(score, weights_sha256="b" * 64),))
    with pytest.raises(UserError, match="other feature weights"):
        compare([make_record()], [dataclasses.replace(make_record(), quality=other)])


def test_another_machine_is_a_warning():
    there = dataclasses.replace(make_record().environment, machine="m-other", device="Some GPU")
    comparison = compare([make_record()], [dataclasses.replace(make_record(), environment=there)])
    assert any("machines" in warning and "m-other" in warning for warning in comparison.warnings)


def test_rows_of_one_set_only_are_named():
    found = verdicts(compare([make_record(), make_record("variant@d4")], [make_record(), make_record("variant@d2")]))
    assert found["variant@d4", "row"] == "gone"
    assert found["variant@d2", "row"] == "new"
    with pytest.raises(UserError, match="no row is in both"):
        compare([make_record("variant@d4")], [make_record("variant@d2")])


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ("speed", "NAME:LIMIT"),
        ("sped:5%", "Did you mean 'speed'"),
        ("speed:0.2", "share"),
        ("fid:5%", "difference"),
    ],
)
def test_bad_limits_say_what_is_right(limits, says):
    with pytest.raises(UserError, match=says):
        compare([make_record()], [make_record()], fail_on=limits)


def test_a_limit_by_which_nothing_can_be_judged_is_no_gate_that_is_passed():
    quick = [*full_records(), make_record(rounds=1)]
    assert verdicts(compare(quick, quick))["variant@d8", "speed"] == "not judged"
    with pytest.raises(
        UserError, match="speed:5%: nothing can be judged by it.*as --rounds 3 does and --quick does not"
    ):
        compare(quick, quick, fail_on="speed:5%")
    assert not compare(quick, quick, fail_on="fid:0.2").failed


def test_the_command_prints_a_table_or_json_and_exits_by_the_limits(tmp_path, capsys):
    for folder, seconds in (("a", 0.5), ("b", 0.7)):
        records.write_record(make_record(seconds=seconds), tmp_path / folder)
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())

    def run(*flags):
        args = parser.parse_args(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *flags])
        return args.run(args), capsys.readouterr().out

    code, out = run()
    assert code == 0
    assert "regressed" in out
    assert "variant@d8" in out
    code, out = run("--fail-on", "speed:5%", "--json")
    data = json.loads(out)
    assert code == 1
    assert data["failed"]
    assert {change["figure"]: change["broken"] for change in data["changes"]}["speed"] == "speed:5%"
    assert as_json(compare([make_record()], [make_record()]))["failed"] is False
    assert "change" in as_table(compare([make_record()], [make_record()]))
