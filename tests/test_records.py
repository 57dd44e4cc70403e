"""Records: documented keys, a round trip, and files that are whole or not there."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import typing

import pytest
from record_factory import make_record

from varbench import record as records
from varbench.record.frames import frame_of, lines_of, write_csv, write_parquet
from varbench.record.plan_summary import call_runs


def sections(kind=records.Record, seen=None):
    seen = {} if seen is None else seen
    seen[kind] = typing.get_type_hints(kind)
    for hint in seen[kind].values():
        for inner in (
            hint,
            *typing.get_args(hint),
            *(a for b in typing.get_args(hint) for a in typing.get_args(b)),
        ):
            if dataclasses.is_dataclass(inner) and inner not in seen:
                sections(inner, seen)
    return seen


def test_every_key_is_documented_and_every_nullable_key_says_when_it_is_absent():
    checked = 0
    for kind, hints in sections().items():
        for field in dataclasses.fields(kind):
            assert field.metadata.get("doc"), f"{kind.__name__}.{field.name} has no documentation"
            nullable = type(None) in typing.get_args(hints[field.name])
            assert nullable == bool(field.metadata["absent"]), f"{kind.__name__}.{field.name}: say when it is absent"
            checked += 1
    assert checked > 150


def test_round_trip_is_exact(tmp_path):
    record = make_record()
    path = records.write_record(record, tmp_path)
    assert records.read_record(path) == record
    assert os.listdir(tmp_path) == [path.name]


def test_what_records_have_alike_is_read_and_written_once_and_is_what_each_has_by_itself(tmp_path):
    some = [make_record(seconds=seconds) for seconds in (0.2, 0.2, 0.3)]
    other = dataclasses.replace(some[2].environment, cpu="another")
    some[2] = dataclasses.replace(some[2], environment=other)
    some = [dataclasses.replace(record, run=f"run-{number}") for number, record in enumerate(some)]
    for number, record in enumerate(some):
        records.write_record(record, tmp_path / str(number))
    loaded = records.load_records([tmp_path]).records
    assert loaded == tuple(some)
    first, again, last = loaded
    assert first.environment is again.environment and first.plan is again.plan
    assert last.environment == other and last.plan == some[2].plan != first.plan
    together = records.all_to_json(loaded)
    assert together == [records.to_json(record) for record in some]
    assert together[0]["plan"] is together[1]["plan"]
    texts = records.texts_of(together)
    assert [json.loads(text) for text in texts] == together
    assert records.all_from_text(b"[" + b",".join(texts) + b"]") == some


def test_a_key_that_does_not_fit_is_named_though_one_like_it_was_read_before():
    data = records.to_json(make_record())
    torn = {**data, "environment": {**data["environment"], "cpu": 3}}
    with pytest.raises(records.RecordError, match=r"record\.environment\.cpu: Expected `str`, got `int`"):
        records.all_from_text(json.dumps([data, torn]).encode())


def test_no_class_takes_a_key_that_it_does_not_know_however_deep_or_lacks_one_that_it_needs():
    data = records.to_json(make_record())
    (version,) = data["row"]["plugins"]
    more, fewer = {**version, "colour": "red"}, {name: version[name] for name in version if name != "version"}
    for one, said in (
        (more, "Object contains unknown field `colour`"),
        (fewer, "Object missing required field `version`"),
    ):
        torn = {**data, "row": {**data["row"], "plugins": [version, one]}}
        with pytest.raises(records.RecordError, match=re.escape(f"record.row.plugins[1]: {said}")):
            records.from_text(json.dumps(torn).encode())
        with pytest.raises(records.RecordError, match=re.escape(f"row.plugins[1]: {said}")):
            records.decode(type(make_record().row), torn["row"], "row")


def test_a_whole_number_stays_one_however_deep():
    data = records.to_json(make_record())
    data["row"]["params"] = {"a.b": 2}
    data["environment"]["clocks"] = {"sm": 1500, "memory": 2.0}
    (column, *_) = data["timing"]["columns"]
    column["rounds"] = [[1, 2.5]]
    found = records.from_text(json.dumps(data).encode())
    assert repr(found.environment.clocks) == "{'sm': 1500, 'memory': 2.0}"
    assert repr(found.timing.columns[0].rounds) == "((1, 2.5),)"
    assert records.to_json(found) == data and json.dumps(records.to_json(found)) == json.dumps(data)


def test_numbers_can_be_keys():
    @dataclasses.dataclass(frozen=True)
    class ByRound:
        seconds: dict[int, float]

    assert records.decode(ByRound, {"seconds": {"3": 1.5}}, "by") == ByRound({3: 1.5})
    with pytest.raises(records.RecordError, match=r"by\.seconds: Expected `int`"):
        records.decode(ByRound, {"seconds": {"three": 1.5}}, "by")


def test_a_file_that_is_nested_beyond_measure_costs_only_itself(tmp_path):
    records.write_record(make_record(), tmp_path)
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    data = {**records.to_json(make_record()), "missing": deep}
    (tmp_path / "deep.json").write_text(json.dumps(data))
    loaded = records.load_records([tmp_path])
    assert len(loaded.records) == 1
    assert len(loaded.problems) == 1 and "deep.json: record.missing[...]: Expected `str`" in loaded.problems[0]


def test_a_frame_of_records_that_share_sections_is_that_of_each(tmp_path):
    some = [make_record(seconds=seconds) for seconds in (0.2, 0.2, 0.3)]
    shared = records.all_to_json([dataclasses.replace(one, plan=some[0].plan) for one in some])
    frame = frame_of(shared)
    alone = [json.loads(json.dumps(data)) for data in shared]
    assert frame.to_json() == frame_of(alone).to_json()
    assert frame["timing.throughput.transformer.median"].nunique() == 2 and frame["plan.digest"].nunique() == 1
    assert not {"plan.steps", "timing.drawn", "timing.calls"} & set(frame.columns)


def test_tables_hold_what_frames_hold_though_parameters_differ_in_type(tmp_path):
    import pandas as pd

    some = [dataclasses.replace(make_record(), metrics={"a.share": share}) for share in (1, 0.5)]
    lines = lines_of(records.all_to_json(some))
    mixed = [{**line, "row.parameter": one} for line, one in zip(lines, (True, 'a "b",\nc'), strict=True)]
    write_csv(mixed, tmp_path / "a.csv")
    write_parquet(mixed, tmp_path / "a.parquet")
    csv, parquet, frame = pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "a.parquet"), pd.DataFrame(lines)
    assert list(csv) == list(parquet) == [*frame, "row.parameter"]
    assert list(csv["row.parameter"]) == ["True", 'a "b",\nc']
    assert list(map(json.loads, parquet["row.parameter"])) == [True, 'a "b",\nc']
    for whole in (2**63, -(2**70)):
        write_parquet([{"seed": whole}, {"seed": None}], tmp_path / "b.parquet")
        assert json.loads(pd.read_parquet(tmp_path / "b.parquet")["seed"][0]) == whole
    write_parquet([{"share": 2**53 + 1}, {"share": 0.5}], tmp_path / "b.parquet")
    assert list(pd.read_parquet(tmp_path / "b.parquet")["share"]) == [2.0**53, 0.5]
    shares = [name for name in frame if name.endswith("a.share")]
    assert [list(table[name]) for table in (csv, parquet) for name in shares] == [[1, 0.5]] * 2
    assert list(parquet["row.row"]) == list(csv["row.row"]) == list(frame["row.row"])


def test_missing_is_null_with_the_nearest_reason():
    record = make_record(missing={"memory": "no pass", "memory.nvml_board_bytes": "container hides it"})
    assert record.why("memory.nvml_board_bytes") == "container hides it"
    assert record.why("memory.nvml_process_bytes") == "no pass"
    assert record.why("energy") == "no energy counter on this device"
    assert make_record(timing=None, missing={}).why("timing.aa_floor") == "speed was not measured"


def test_a_number_that_is_not_one_is_refused_by_its_path(tmp_path):
    with pytest.raises(records.RecordError, match=r"record\.metrics\.a\.b is nan"):
        records.write_record(make_record(metrics={"a.b": float("nan")}), tmp_path)
    assert os.listdir(tmp_path) == []


def test_text_of_a_class_of_its_own_is_written_as_text(tmp_path):
    class Version(str):  # such as torch's
        pass

    record = make_record()
    versions = {**record.environment.versions, "torch": Version("2.13.0+cpu")}
    record = dataclasses.replace(record, environment=dataclasses.replace(record.environment, versions=versions))
    assert records.read_record(records.write_record(record, tmp_path)).environment.versions["torch"] == "2.13.0+cpu"


def test_nothing_is_overwritten_silently(tmp_path):
    records.write_record(make_record(), tmp_path)
    with pytest.raises(records.RecordError, match="--resume"):
        records.write_record(make_record(seconds=1.0), tmp_path)
    changed = make_record(seconds=1.0)
    path = records.write_record(changed, tmp_path, replace=True)
    assert records.load_records([tmp_path]).records == (changed,)
    assert records.write_record(make_record("variant@d4"), tmp_path) != path


def test_torn_and_foreign_files_cost_only_themselves(tmp_path):
    good = records.write_record(make_record(), tmp_path)
    torn = tmp_path / "torn-0123456789.json"
    torn.write_bytes(good.read_bytes()[:500])
    (tmp_path / "large.json").write_text(good.read_text().replace('"exit_code":null', '"exit_code":1e999'))
    (tmp_path / "deep.json").write_text('{"schema": ' + "[" * 100_000)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "run.json").write_text('{"rows": 3}')
    (tmp_path / ".half.json").write_text("{")
    (tmp_path / "wrong.json").write_text(json.dumps({**json.loads(good.read_text()), "status": "fine"}))
    loaded = records.load_records([tmp_path])
    assert loaded.paths == (good,)
    deep, large, torn, wrong = loaded.problems
    assert "deep.json: torn" in deep and "large.json: record.exit_code: Number out of range" in large
    assert "torn-0123456789.json: torn" in torn and "--resume" in torn
    assert "record.status" in wrong


def test_newer_schema_is_refused_with_a_hint_and_an_older_one_is_read(tmp_path, monkeypatch):
    data = records.to_json(make_record())
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**data, "schema": records.SCHEMA_VERSION + 1}))
    with pytest.raises(records.NewerSchemaError, match="upgrade varbench"):
        records.read_record(path)

    del (
        data["distance"],
        data["row"]["study"],
        data["published"],
        data["study"],
    )  # keys that an older version did not know
    path.write_text(json.dumps({**data, "schema": records.SCHEMA_VERSION - 1}))
    older = records.read_record(path)
    assert older.distance is None
    assert older.schema == records.SCHEMA_VERSION

    renamed = {**data, "commandline": data["command"]}
    del renamed["command"]
    path.write_text(json.dumps({**renamed, "schema": records.SCHEMA_VERSION - 1}))
    with pytest.raises(records.RecordError, match="commandline"):
        records.read_record(path)
    upgrade = {
        records.SCHEMA_VERSION - 1: lambda old: {
            **{name: value for name, value in old.items() if name != "commandline"},
            "command": old["commandline"],
        }
    }
    monkeypatch.setattr("varbench.record.store.UPGRADES", upgrade)
    assert records.read_record(path).command == data["command"]


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1, "other": 2}',
        '{"schema": 3}',
        '{"schema": 2, "protocol": {}, "timing": {}}',
        '{"schema": 2, "protocol": {"seconds": 1}, "timing": {"columns": 5}}',
        '{"schema": 4, "timing": [1]}',
        '{"schema": 1, "protocol": 1, "model": {}}',
    ],
)
def test_what_no_older_version_wrote_is_one_line_and_costs_no_other(text, tmp_path):
    good = records.write_record(make_record(), tmp_path)
    (tmp_path / "older.json").write_text(text)
    loaded = records.load_records([tmp_path])
    assert loaded.paths == (good,)
    (problem,) = loaded.problems
    assert "older.json: not a record of schema" in problem
    (tmp_path / "older.json").write_text('{"schema": true}')
    assert records.load_records([tmp_path]).problems == (), "other JSON"


def test_runs_of_one_name_in_different_folders_are_told_apart(tmp_path):
    """Those of two days have one name each day; a copy of a run is that run, and counts once."""
    one = [make_record(row="full_var", run="d16"), make_record(row="variant@d8", run="d16")]
    other = [make_record(row="full_var", run="d16", seconds=0.3), make_record(row="variant@d4", run="d16")]
    for place, some in (("monday", one), ("tuesday", other), ("copied", one[:1])):
        for record in some:
            records.write_record(record, tmp_path / place / "d16")
    records.write_record(make_record(row="fixed_ratio@p10/d8", run="d16"), tmp_path / "elsewhere")
    loaded = records.load_records([tmp_path])
    runs = {
        (path.parts[-3], record.row.row): record.run for path, record in zip(loaded.paths, loaded.records, strict=True)
    }
    assert runs.pop((tmp_path.name, "fixed_ratio@p10/d8")) == "d16"
    assert {place for place, _ in runs} == {"copied", "monday", "tuesday"} and len(runs) == 2 + 2
    assert {name for (place, _), name in runs.items() if place in ("monday", "copied")} == {"d16"}
    assert {name for (place, _), name in runs.items() if place == "tuesday"} == {"d16 (2)"}
    (problem,) = loaded.problems
    assert problem.startswith("1 records are copies of others, and count once: ")


def test_a_record_that_named_a_sampler_is_read(tmp_path):
    data = records.to_json(make_record())
    old = {**data, "schema": 3, "protocol": {**data["protocol"], "sampler": None}}
    (tmp_path / "a.json").write_text(json.dumps(old))
    assert records.read_record(tmp_path / "a.json") == make_record()


def test_a_kill_during_writing_leaves_the_old_file(tmp_path):
    path = records.write_record(make_record(), tmp_path)
    before = path.read_bytes()
    code = f"""
        import os, signal, pathlib
        from varbench.base import whole_files
        real = os.fsync
        def die(handle): os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = die
        whole_files.write_whole(pathlib.Path({str(path)!r}), b"new" * 100000)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(records.load_records([tmp_path]).records) == 1


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = records.write_record(make_record(), tmp_path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        records.write_record(make_record(seconds=3.0), tmp_path, replace=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_equal_neighbours_of_a_plan_are_written_once_and_in_order():
    calls = [(0, 4, 4, 1, 4, 5), (1, 4, 4, 1, 4, 5), (2, 4, 2, 1, 4, 5), (3, 4, 4, 1, 4, 5)]
    runs = call_runs(calls)
    assert [run.layers for run in runs] == [(0, 1), (2,), (3,)]
    assert runs[1].ffn_tokens == 2


def test_importing_records_is_light():
    code = "import sys, varbench.record; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_sample_grids_beside_a_record_are_taken_in_when_it_is_loaded(tmp_path):
    inside = make_record()
    grid = base64.b64decode(inside.samples.png)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "d8.png").write_bytes(grid)
    for row, path in (("variant@d8", "grids/d8.png"), ("variant@d4", "grids/gone.png")):
        samples = dataclasses.replace(inside.samples, png=None, path=path)
        records.write_record(dataclasses.replace(make_record(row), samples=samples), tmp_path)
    lost, found = sorted(records.load_records([tmp_path]).records, key=lambda record: record.row.row)
    assert base64.b64decode(found.samples.png) == grid
    assert lost.samples.png is None
    assert "gone.png" in lost.why("samples.png")
