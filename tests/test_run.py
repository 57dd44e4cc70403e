"""`varbench run`: options, plans of children, how children end, records that grow, and what a resumed run leaves out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from varbench import rows
from varbench.__main__ import main
from varbench.errors import UserError
from varbench.record import Status, Verdict, read_record
from varbench.record.options import Options
from varbench.rows.manager import manager
from varbench.run import schedule
from varbench.run.children import Ended, run_child
from varbench.run.defaults import resolve
from varbench.run.display import Display
from varbench.run.earlier import complete_records, other_settings, set_aside_outdated
from varbench.run.execute import Execution, locked
from varbench.run.prepare import UPSTREAM, Run, prepare


def options(**given: Any) -> Options:
    return resolve(Namespace(**{"config": None, "plugins": "variant", **given}))


def a_run(out: Path, **given: Any) -> Run:
    chosen = options(**{"weights": "random", "batch": 2, "dtype": "float32", "rounds": 2, **given})
    prepared = prepare(chosen, manager())
    return Run(
        name=out.name, options=chosen, prepared=prepared, order=tuple(prepared.measured), quality_rows=frozenset(),
        available_memory=1 << 30,
    )  # fmt: skip


# Options


def test_command_line_wins_over_file_which_wins_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('plugins = ["variant@d8", "code"]\nbatch = 8\nrounds = 5\nall-settings = true\ntimeout = 30\n')
    found = options(config=file, plugins=None, batch=16)
    assert (found.plugins, found.batch, found.rounds, found.all_settings) == ("variant@d8,code", 16, 5, True)
    assert (found.timeout, found.cfg, found.model) == (30.0, 1.5, "tiny")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 0}, "--batch is 0; give 1 or more"),
        ({"dtype": "bfloat61"}, "Did you mean 'bfloat16'"),
        ({"rounds": 0}, "--rounds is 0; give 1 or more"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: no such file"),
        ({"images": 7, "weights": None}, None),
        ({"companion": ["refiner"]}, "NAME=FILE"),
        ({"timeout": 0.0}, "--timeout is 0; give more than 0"),
        ({"timeout": float("nan")}, "--timeout is nan; give a finite number"),
        ({"memory_limit": 0.0}, "--memory-limit is 0; give more than 0"),
        ({"memory_limit": -1.0}, "--memory-limit is -1; give more than 0"),
        ({"device": "gpu"}, "--device is 'gpu'; give cpu, cuda or cuda:N"),
        ({"top_k": 513}, "--top-k is 513; tiny has 512 codes"),
    ],
)
def test_bad_options_say_what_to_give(given: dict[str, Any], words: str | None) -> None:
    if words is None:
        words = "7 images are too few"
        if not options(weights=None).images:
            pytest.skip("this checkout ships no weights, so no images are asked for")
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        options(**given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batsh = 3", "run.toml: no key 'batsh'. Did you mean 'batch'"),
        ("[run]\nkernel = 'math'", "no key 'kernel'"),
        ('batch = "3"', "run.toml: batch is '3'; give a whole number"),
        ("batch = true", "batch is True; give a whole number"),
        ("batch = 0", "batch is 0; give 1 or more"),
        ("timeout = '3'", "give a number"),
        ("dtype = 16", "give a text"),
        ("quick = 1", "give true or false"),
        ("companion = 'refiner=a'", "give a list of texts"),
        ("run = 3", "no key 'run'"),
    ],
)
def test_bad_config_names_the_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        options(config=file)


def test_nothing_selected_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 4
    assert "nothing is selected" in capsys.readouterr().err


def test_dry_run_prints_rows_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "there"
    code = main(["run", "--plugins", "variant@d8", "--weights", "random", "--dry-run", "--out", str(out)])
    said = capsys.readouterr().out
    assert code == 0
    assert "variant@d8" in said
    assert UPSTREAM in said  # both denominators are always rows
    assert not out.exists()


def test_the_parent_imports_no_torch() -> None:
    code = "import sys; from varbench.__main__ import main; main(['run', '--plugins', 'variant', '--dry-run']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# What runs when


def test_rounds_turn_around(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    base = schedule.base_job(run.options, run.prepared)
    even = [(weights.key, job.rows) for weights, job in schedule.speed_jobs(base, run.prepared, round=0)]
    odd = [(weights.key, job.rows) for weights, job in schedule.speed_jobs(base, run.prepared, round=1)]
    assert [key for key, _ in odd] == [key for key, _ in even[::-1]]
    assert odd[-1][1] == even[0][1][::-1]


def test_rows_of_one_recipe_share_weights_whatever_their_point(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    chosen = options(plugins="variant,fixed_ratio,variant@d8:bridge=3", model="tiny", weights=str(file), vae=str(file))
    sets = {weights.key: weights.rows for weights in prepare(chosen, manager()).weight_sets}
    assert set(sets["pretrained"]) == {rows.FULL, UPSTREAM}
    assert {"fixed_ratio@p01", "fixed_ratio@p05", "fixed_ratio@p10"} < set(sets)
    shared = next(names for names in sets.values() if "variant@d2" in names)
    assert "variant@d8" in shared
    assert "variant@d8:bridge=3" not in shared


def test_a_second_model_is_the_business_of_the_rows_that_run_on_it() -> None:
    """Another row's second model makes no record old."""
    alone = prepare(options(plugins="variant@d8", model="tiny"), manager())
    beside = prepare(options(plugins="variant@d8,code@training_free/n4", model="tiny"), manager())
    assert beside.files is not None
    assert Path(beside.files["refiner"]).name == "narrow.safetensors"
    assert alone.files is not None
    assert alone.files.keys() == {"vae", "main"}
    assert alone.measured["variant@d8"].inputs == beside.measured["variant@d8"].inputs


def test_a_large_preset_trains_nothing_without_data(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    given = {"model": "var-d16", "plugins": "variant@d8", "weights": str(file), "vae": str(file), "device": "cpu"}
    (weights,) = prepare(options(**given), manager()).weight_sets
    assert (weights.key, weights.trains) == ("pretrained", None)
    assert len(prepare(options(**given, data=str(tmp_path)), manager()).weight_sets) == 2


# Children


def child(code: str) -> Any:
    """A child that runs this code with `say(event, **content)`; no torch, so that it starts at once."""
    head = "import sys, os, json\ndef say(event, **more): os.write(int(sys.argv[1]), json.dumps({'event': event, **more}).encode() + b'\\n')\n"
    return lambda fd: [sys.executable, "-c", head + textwrap.dedent(code), str(fd)]


def ended(code: str, tmp_path: Path, *, timeout: float = 20.0) -> Ended:
    return run_child(child(code), log=tmp_path / "log", timeout=timeout)


def test_a_child_that_comes_to_its_end_has_no_failure(tmp_path: Path) -> None:
    found = ended("say('at', row='a'); print('words'); say('result', row='a', x=1); say('done')", tmp_path)
    assert found.failure is None
    assert found.of("result") == [{"event": "result", "row": "a", "x": 1}]
    assert found.stderr_tail == "words"
    assert (tmp_path / "log").read_text() == "words\n"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("os.kill(os.getpid(), 11)", Status.CRASHED, "SIGSEGV"),
        ("os._exit(7)", Status.CRASHED, "exit code 7"),
        ("print(\"terminate called after throwing 'std::bad_alloc'\", file=sys.stderr, flush=True); os.abort()",
         Status.OUT_OF_MEMORY_HOST, "bad_alloc"),
    ],
)  # fmt: skip
def test_ends_are_told_apart_and_blamed_on_the_row_that_ran(
    tmp_path: Path, code: str, status: Status, words: str
) -> None:
    found = ended(f"say('at', row='a'); say('result', row='a'); say('at', row='b'); {code}", tmp_path)
    assert found.failure is not None
    assert (found.failure.status, found.at) == (status, "b")
    assert words in found.failure.reason


def test_a_silent_child_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = """
    import subprocess, time
    other = subprocess.Popen(['sleep', '60'])
    say('at', row=str(other.pid)); time.sleep(60)
    """
    began = time.monotonic()
    found = ended(code, tmp_path, timeout=1.0)
    assert found.failure is not None
    assert found.failure.status is Status.TIMEOUT
    assert time.monotonic() - began < 15
    time.sleep(0.2)
    assert not _runs(int(str(found.at)))


def test_a_child_that_speaks_may_take_longer_than_the_limit(tmp_path: Path) -> None:
    code = "import time\nfor _ in range(8): say('progress', row='a'); time.sleep(0.25)\nsay('done')"
    assert ended(code, tmp_path, timeout=1.5).failure is None


def test_a_grandchild_that_keeps_the_output_open_holds_nobody_up(tmp_path: Path) -> None:
    began = time.monotonic()
    found = ended("import subprocess; subprocess.Popen(['sleep', '60']); say('done')", tmp_path)
    assert found.failure is None
    assert time.monotonic() - began < 15


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
    from pathlib import Path
    from varbench.run.children import run_child
    import sys
    inner = "import os, time; from varbench.run import child; child._die_with_parent(); open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    run_child(lambda fd: [sys.executable, "-c", inner], log=Path({str(tmp_path / "log")!r}), timeout=60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    for _ in range(200):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    time.sleep(0.5)
    assert not _runs(int(pid_file.read_text()))


def _runs(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# Records that grow


class Scripted(Execution):
    """An execution whose children are answers from memory: what is tested is what becomes of them."""

    def __init__(self, *args: Any, fails: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.fails = fails or {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def _child(self, job: Any, name: str) -> Ended:
        self.asked.append((job.task, job.rows))
        events: list[dict[str, Any]] = [{"event": "hello", **_hello()}]
        for row in job.rows:
            if row in self.fails:
                events.append({"event": "at", "row": row})
                if self.fails[row] == "interrupt":
                    raise KeyboardInterrupt
                from varbench.run.reasons import Failure

                return Ended(
                    events=events, failure=Failure(status=Status(self.fails[row]), reason="as told"), exit_code=-11
                )
            events.append({"event": "result", "row": row, **_answer(self.rows()[row].plan, job)})
        return Ended(events=[*events, {"event": "done"}])


def _hello() -> dict[str, Any]:
    import dataclasses

    from varbench.measure.environment import environment

    return {
        "environment": dataclasses.asdict(environment("cpu")),
        "weights": {},
        "parameters": {"main": 10},
        "disturbed": None,
    }


def _answer(plan: Any, job: Any) -> dict[str, Any]:
    import dataclasses

    from varbench.plan.state import state_over_time
    from varbench.record import totals_of

    if job.task == "memory":
        states = list(state_over_time(plan, batch=job.options.batch, dtype=job.options.dtype))
        totals = dataclasses.asdict(totals_of(plan, batch=job.options.batch, dtype=job.options.dtype))
        return {
            "batch": job.options.batch, "weights": 5, "state_peak": [peak for peak, _ in states], "missing": {}, "findings": [],
            "state_after": [after for _, after in states], "trace": totals, "kernel": "k", "changed": [], "rss_growth": 7,
        }  # fmt: skip
    column = {name: [1.0, 1.01, 0.99] for name in ("transformer", "with_decoder", "end_to_end")}
    clocks = dict.fromkeys(column, "perf_counter")
    return {"columns": {"throughput": column, "latency": column}, "wall": {}, "clocks": clocks, "first_call": 2.0, "changed": [],
            "identical": 1.0, **({"anchor": [1.0, 1.02, 0.99]} if job.anchor else {})}  # fmt: skip


def scripted(run: Run, out: Path, **fails: str) -> Scripted:
    named = {name.replace("_at_", "@"): how for name, how in fails.items()}
    return Scripted(run, out, Display(1), complete_records(run, out), fails=named)


def test_every_row_ends_as_a_valid_record(tmp_path: Path) -> None:
    execution = scripted(a_run(tmp_path), tmp_path)
    execution.everything()
    records = execution.save_all()
    assert {record.status for record in records} == {Status.COMPLETE}
    assert {record.validity.verdict for record in records} == {Verdict.VALID}
    assert {read_record(path).row.row for path in tmp_path.glob("*.json")} == set(execution.rows())
    assert {record.protocol.kernel for record in records} == {"k"}
    full = next(record for record in records if record.row.denominator == "lossless")
    assert full.timing is not None
    assert full.timing.aa_floor is not None
    assert full.timing.largest_batch is not None
    assert full.timing.largest_batch.limit_bytes == round(0.6 * (1 << 30))
    assert [len(column.rounds) for column in full.timing.columns] == [2] * 6
    assert full.why("quality") == "the weights are random"


def test_a_full_model_that_fails_is_no_anchor_and_costs_no_other_row(tmp_path: Path) -> None:
    execution = scripted(a_run(tmp_path), tmp_path, full_var="out_of_memory_device")
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    assert records["variant@d8"].status is Status.COMPLETE
    timing = records["variant@d8"].timing
    assert timing is not None and timing.anchor is None and timing.aa_floor is None


def test_a_crash_costs_its_row_alone_and_is_not_run_again(tmp_path: Path) -> None:
    execution = scripted(a_run(tmp_path), tmp_path, variant_at_d8="crashed")
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    assert records["variant@d8"].status is Status.CRASHED
    assert records["variant@d8"].exit_code == -11
    assert {records[name].status for name in records if name != "variant@d8"} == {Status.COMPLETE}
    assert sum("variant@d8" in asked for _, asked in execution.asked) == 1


def test_a_crash_within_a_shared_child_leaves_the_others_to_a_new_one(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    execution = scripted(run, tmp_path)
    base = schedule.base_job(run.options, run.prepared)
    execution.fails = {"variant@d8": "crashed"}
    weights, job = next(schedule.speed_jobs(base, run.prepared, round=0))
    execution._measure(weights, job, "speed", execution._take_speed)
    assert [len(asked) for _, asked in execution.asked] == [5, 1]
    assert {name for name, one in execution.rows().items() if 0 in one.speed} == set(job.rows) - {"variant@d8"}


def test_resume_skips_what_is_complete_and_unchanged(tmp_path: Path) -> None:
    first = scripted(a_run(tmp_path), tmp_path, variant_at_d8="crashed")
    first.everything()
    first.save_all()
    again = scripted(a_run(tmp_path), tmp_path)
    again.everything()
    assert {name for _, asked in again.asked for name in asked} == {"variant@d8"}
    assert {read_record(path).status for path in tmp_path.glob("*.json")} == {Status.COMPLETE}
    other = a_run(tmp_path, seed=1)
    assert complete_records(other, tmp_path) == {}


def test_what_other_inputs_made_is_set_aside_and_other_settings_are_named(tmp_path: Path) -> None:
    first = scripted(a_run(tmp_path), tmp_path)
    first.everything()
    first.save_all()
    paths = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    same = a_run(tmp_path)
    assert set_aside_outdated(same, tmp_path) == ()
    assert other_settings(same, tmp_path) == {}
    assert other_settings(a_run(tmp_path, batch=4, seed=1), tmp_path) == {"batch": (2, 4), "seed": (0, 1)}

    same.prepared.measured["variant@d8"].inputs = "changed"
    assert set_aside_outdated(same, tmp_path) == ("variant@d8",)
    (old,) = tmp_path.glob("*.json.old")
    (gone,) = set(paths) - set(tmp_path.glob("*.json"))
    assert old.read_bytes() == paths[gone]


def test_a_later_run_measures_anew_only_what_may_differ(tmp_path: Path) -> None:
    first = scripted(a_run(tmp_path / "a"), tmp_path / "a")
    first.everything()
    again = scripted(a_run(tmp_path / "b"), tmp_path / "b")
    again.everything()
    assert {task for task, _ in first.asked} == {"memory", "speed"}
    assert {task for task, _ in again.asked} == {"speed"}
    records = again.save_all()
    assert {record.status for record in records} == {Status.COMPLETE}
    assert all(any("earlier run" in notice.text for notice in record.warnings) for record in records)
    # Other inputs (here: more rounds), or --fresh, and nothing of it is taken.
    for changed in ({"rounds": 3}, {"fresh": True}):
        other = scripted(a_run(tmp_path / "c", **changed), tmp_path / "c")
        other.everything()
        assert {task for task, _ in other.asked} == {"memory", "speed"}


def test_an_interrupted_run_goes_on_with_what_it_had(tmp_path: Path) -> None:
    first = scripted(a_run(tmp_path), tmp_path)
    first.fails = {"variant@d2": "interrupt"}
    with pytest.raises(KeyboardInterrupt):
        first.everything()
    first.save_all()
    statuses = {read_record(path).status for path in tmp_path.glob("*.json")}
    assert statuses == {Status.INTERRUPTED}
    again = scripted(a_run(tmp_path), tmp_path)
    again.everything()
    memory_before = {asked for task, asked in first.asked if task == "memory"} - {("variant@d2",)}
    assert not memory_before & {asked for task, asked in again.asked if task == "memory"}
    assert {read_record(path).status for path in tmp_path.glob("*.json")} == {Status.COMPLETE}


def test_a_torn_record_is_measured_again(tmp_path: Path) -> None:
    first = scripted(a_run(tmp_path), tmp_path)
    first.everything()
    first.save_all()
    torn = next(path for path in tmp_path.glob("variant*.json") if read_record(path).row.row == "variant@d2")
    torn.write_text(torn.read_text()[:100])
    assert set(first.rows()) - set(complete_records(a_run(tmp_path), tmp_path)) == {"variant@d2"}


def test_a_full_disk_leaves_the_old_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = scripted(a_run(tmp_path), tmp_path)
    execution.save_all()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}

    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        execution.everything()
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert not list(tmp_path.glob("*.tmp"))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another run is working"), locked(tmp_path):
        pass


def test_a_run_never_writes_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"schema": 1}))
    assert main(["run", "--plugins", "variant", "--weights", "random", "--out", str(tmp_path)]) == 2
    assert "holds records already" in capsys.readouterr().err


def test_images_that_are_asked_for_are_made_without_a_reference_too(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    given = {"weights": str(file), "vae": str(file), "model": "var-d16", "device": "cpu"}
    assert options(**given).images == 0
    assert options(**given, images=40).images == 40
    assert options(weights="random", model="var-d16", device="cpu", images=40).images == 0
