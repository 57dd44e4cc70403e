"""`varbench run`: options, how children end, records that grow, what a resumed run leaves out, what decides a result."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import runs
from scripted import Script, ScriptedChild, a_run, conduct, options, scripted

from varbench import rows
from varbench.__main__ import main
from varbench.base.display import Display
from varbench.base.termination import terminated_as_interrupted
from varbench.commands import run as run_command
from varbench.errors import UserError
from varbench.measure import honesty
from varbench.measure.calls import Request
from varbench.measure.largest import needed
from varbench.measure.pairs import Pair
from varbench.measure.speed import SpeedRound
from varbench.measure.strain import Strain
from varbench.plan import presets
from varbench.plan.hardware import KNOWN
from varbench.plan.state import state_over_time
from varbench.plan.trace import foreseen
from varbench.quality.feature_cache import cached_arrays
from varbench.record import Samples, Status, Verdict, read_record, write_record
from varbench.record.failure import Failure
from varbench.rows import FULL, UPSTREAM
from varbench.rows.manager import manager
from varbench.run import children, identity, nursery, timing
from varbench.run.channel import Channel
from varbench.run.children import Child, ChildEndedError, Process
from varbench.run.conduct import PARTS, Conduct
from varbench.run.findings import Looks, Seen, keep
from varbench.run.full_alone import KEPT, _fit_together
from varbench.run.inputs import sizes_of
from varbench.run.kept_parts import KeptParts
from varbench.run.messages import (
    Ahead,
    Alive,
    ChildCode,
    Done,
    Job,
    Oddities,
    Ready,
    ResolvedPlugin,
    Scored,
    Trained,
    from_line,
    to_line,
)
from varbench.run.nursery import Ends
from varbench.run.prepare import TOGETHER, Run, prepare
from varbench.run.reasons import of_exception
from varbench.run.resume import complete_records, other_settings, set_aside_outdated
from varbench.run.scorers import Scorers
from varbench.run.session import locked, parts
from varbench.run.side_by_side import side_by_side
from varbench.run.tasks import training
from varbench.run.tasks.resolving import files_of, resolved
from varbench.run.training_section import section
from varbench.run.verdict import validity
from varbench.run.verify import mismatches
from varbench.show.entries import blocks_of
from varbench.show.forecast import Forecast, as_text, forecast
from varbench.train.training_log import HeldOutLoss, TrainedStage, TrainingLog

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
        ({"rounds": -1}, "--rounds is -1; give 0 or more"),
        ({"rounds": 0, "quick": True}, "leave it out, or --rounds 0"),
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


def test_the_parent_imports_neither_torch_nor_any_plugin() -> None:
    """A plugin that is imported could reach what judges it."""
    code = (
        "import sys; from varbench.__main__ import main; main(['run', '--plugins', 'variant', '--dry-run']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'varbench_plugins', 'varbench_baselines')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# What runs when


def test_what_is_timed_is_drawn_anew_in_each_process(tmp_path: Path, script: Script) -> None:
    """No seed follows from another, none comes twice but for the equal call, and the order of rows is drawn too."""
    run = a_run(tmp_path, plugins="variant@d8,variant@d2", quick=True, rounds=8)
    execution = conduct(run, tmp_path)
    execution.everything()
    seeds = [lap.seed for name in ("variant@d8", "variant@d2") for one in execution.found[name].speed.values()
             for lap in one.oversight.laps]  # type: ignore[union-attr]  # fmt: skip
    equal_calls = 2 * 8
    assert len(seeds) - len(set(seeds)) == equal_calls
    assert not {seed + 1 for seed in seeds} & set(seeds)
    asked = [request.row for request in script.requests if request.look is None]
    firsts = {tuple(dict.fromkeys(asked[start : start + 40])) for start in range(0, len(asked), len(asked) // 8)}
    assert len(firsts) > 1


def test_a_slowed_denominator_is_seen_beside_a_full_model_alone(tmp_path: Path, script: Script) -> None:
    script.alone = 0.6
    run = a_run(tmp_path, plugins="variant@d8", quick=True, rounds=3)
    execution = conduct(run, tmp_path)
    execution.everything()
    for record in execution.save_all():
        assert record.validity.verdict is Verdict.INVALID
        assert "takes 1.00" in record.validity.reasons[0] and "0.60" in record.validity.reasons[0]


def test_a_slowed_denominator_of_calls_of_one_image_is_seen_too(tmp_path: Path, script: Script) -> None:
    script.alone, script.alone_at = 0.6, 1
    run = a_run(tmp_path, plugins="variant@d8", quick=True, rounds=3)
    execution = conduct(run, tmp_path)
    execution.everything()
    for record in execution.save_all():
        assert [reason.partition(":")[0] for reason in record.validity.reasons] == ["latency"]


def test_who_remembers_calls_is_invalid(tmp_path: Path, script: Script) -> None:
    """In every process that timed it."""
    script.remembers = True
    execution = conduct(a_run(tmp_path, plugins="variant@d8", quick=True, rounds=3), tmp_path)
    execution.everything()
    (reason,) = next(r for r in execution.save_all() if r.row.row == "variant@d8").validity.reasons
    assert reason.startswith("an equal call takes 10% of a fresh one's time")
    found = execution.found["variant@d8"]
    once = replace(found, speed={**found.speed, 1: replace(found.speed[1], identical=0.9)})
    row = execution.run.rows["variant@d8"]
    assert validity(execution.run, row, once, {}, complete=True).verdict is Verdict.VALID, "one of them says otherwise"


def test_a_row_whose_plan_no_other_has_takes_eight_rounds(tmp_path: Path, script: Script) -> None:
    """Its speedup rests on its own processes; `fixed_ratio@p01/d8` and `variant@d8` have each other's too."""
    run = a_run(tmp_path, plugins="variant@untrained/d8,variant@d2", budget=0.0, rounds=3, count=6)
    shared = prepare(options(plugins="variant@d8,fixed_ratio@p01/d8", model="tiny", rounds=3), name="a")
    assert (shared.rounds_of("variant@d8"), shared.rounds_of("fixed_ratio@p01/d8"), shared.rounds_of(UPSTREAM)) == (
        4,
        4,
        8,
    )
    shared = prepare(
        options(plugins="variant@d8,fixed_ratio@p01/d8,fixed_ratio@p05/d8", model="tiny", rounds=3), name="a"
    )
    assert shared.rounds_of("variant@d8") == 3
    assert a_run(tmp_path, plugins="variant@d8", rounds=2).rounds_of("variant@d8") == 2, "two rounds were asked for"
    execution = conduct(run, tmp_path)
    execution.everything()
    found = {record.row.row: record for record in execution.save_all()}
    assert {record.status for record in found.values()} == {Status.COMPLETE}
    taken = {tuple(map(len, record.timing.columns[0].rounds)) for record in found.values() if record.timing}
    assert taken == {(6, 6, 6, 4, 4, 4, 4, 4)}


@pytest.mark.slow
def test_rows_of_one_plan_share_what_precision_asks_of_them(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure of two sets of weights that run one plan rests on the processes of both."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * size)  # what is asked, and so what times come out
    shared = prepare(options(plugins="variant@d8,fixed_ratio@p01/d8", model="tiny", rounds=3), name="a")
    assert (shared.processes_of("variant@d8"), shared.processes_of(UPSTREAM)) == (8, 8)

    def pairs(processes: int) -> int:
        monkeypatch.setattr(Run, "processes_of", lambda self, name: processes)
        out = tmp_path / str(processes)
        execution = conduct(a_run(out, plugins="full_var", precision=0.0005, budget=1e3, quick=True, rounds=5), out)
        execution.everything()
        return len(execution.found["full_var"].speed[0].throughput)

    assert pairs(40) < pairs(5)


def test_too_few_steps_of_a_recipe_are_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process that would train, and all its rows have failed before the full model's first image is made."""
    known: list[dict[str, Status]] = []

    def measured(self: Conduct, *given: Any) -> None:
        known.append({(record := read_record(path)).row.row: record.status for path in self.out.glob("*.json")})

    monkeypatch.setattr(Conduct, "in_children", measured)
    run = a_run(tmp_path, plugins="variant@d8", weights=None, train=True, steps=5, images=0, quick=True, rounds=1)
    execution = conduct(run, tmp_path)
    execution.everything()
    failure = execution.found["variant@d8"].failure
    assert (
        failure is not None
        and "5 optimiser steps are too few for the schedule's phases; give at least 6" in failure.reason
    )
    assert known and {found["variant@d8"] for found in known} == {Status.FAILED}
    assert {found[FULL] for found in known} == {Status.INTERRUPTED}


def test_a_quick_look_makes_images_and_times_them_in_one_process(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "is_scored", lambda self, name: True)
    odd = Oddities(repeated=0, copied=None, undecoded=None)
    seen = Seen(scored=Scored(quality=None, distance=None, samples=Samples(), weights=(), oddities=odd))
    monkeypatch.setattr(Scorers, "score", lambda *given, **more: seen)

    def processes(name: str, **given: Any) -> int:
        script.started.clear()
        conduct(a_run(tmp_path / name, plugins="full_var", rounds=1, **given), tmp_path / name).everything()
        return sum(task == "making" for task, _ in script.started)

    alone = 1
    assert processes("quick", quick=True) == alone + 1
    assert processes("whole", quick=False) == alone + 2


def test_a_row_is_told_when_it_is_finished_and_its_interval_while_it_is_measured(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    details: list[str] = []
    monkeypatch.setattr(Display, "detail", lambda self, *lines: details.extend(lines))
    execution = conduct(a_run(tmp_path, plugins="variant@untrained/d8", rounds=2), tmp_path)
    script.seconds = {"variant@untrained/d8": 0.5}
    execution.everything()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  variant@untrained/d8: ")]
    (line,) = told
    assert re.fullmatch(r"  variant@untrained/d8: 2\.00x ± 0\.\d\d over 2 processes", line)
    after_one = next(text for text in details if text.startswith("variant@untrained/d8 2.00x"))
    assert after_one.endswith("over 1 process")
    assert details.index("variant@untrained/d8") < details.index(after_one)


def test_rows_of_one_recipe_share_weights_whatever_their_point(tmp_path: Path, script: Script) -> None:
    chosen = options(plugins="variant,fixed_ratio,variant@d8:bridge=3", model="tiny")
    sets = {weights.key: weights.rows for weights in prepare(chosen, name="a").weight_sets}
    assert set(sets["pretrained"]) == {rows.FULL, UPSTREAM}
    assert {"fixed_ratio@p01", "fixed_ratio@p05", "fixed_ratio@p10"} < set(sets)
    shared = next(names for names in sets.values() if "variant@d2" in names)
    assert "variant@d8" in shared
    assert "variant@d8:bridge=3" not in shared


def test_a_large_preset_trains_nothing_without_data(tmp_path: Path, script: Script) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    given = {"model": "var-d16", "plugins": "variant@d8", "weights": str(file), "vae": str(file), "device": "cpu"}
    (weights,) = prepare(options(**given), name="a").weight_sets
    assert (weights.key, weights.trains) == ("pretrained", None)
    assert len(prepare(options(**given, data=str(tmp_path)), name="a").weight_sets) == 2


def test_what_ships_is_not_looked_up_by_processes_for_trainings(tmp_path: Path) -> None:
    """Those begin with torch anew, on one thread."""
    for given, ships in (
        ({}, True), ({"steps": 2000}, True), ({"steps": 20}, False), ({"seed": 1}, False), ({"train": True}, False),
        ({"data": str(tmp_path)}, False),
    ):  # fmt: skip
        run = prepare(options(plugins="variant@d8,fixed_ratio@p05/d8,variant@d8:bridge=1", **given), name="a")
        found = {weights.key: run.ships(weights) for weights in run.weight_sets if weights.trains}
        assert {found.pop("variant@progressive"), found.pop("fixed_ratio@p05")} == {ships}, given
        assert list(found.values()) == [False]


# Children


def child(code: str, tmp_path: Path, *, timeout: float = 20.0, asked: str | None = None, **given: Any) -> Child:
    """A child that runs this code with `say(message)`; no torch, so that it starts at once."""
    head = (
        "import sys, os\nfrom varbench.run.messages import *\nfrom varbench.record import Status\n"
        "def say(message): os.write(int(sys.argv[2]), to_line(message))\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(code)]

    def begin(ends: Ends) -> Process:
        return subprocess.Popen(
            [*command, str(ends.reading), str(ends.writing)], cwd=ends.folder, pass_fds=(ends.reading, ends.writing),
            stdout=ends.output, stderr=ends.output, start_new_session=True,
        )  # fmt: skip

    return Child(begin, log=tmp_path / "log", timeout=timeout, asked=asked, **given)


def test_a_child_is_heard_and_its_other_words_are_kept(tmp_path: Path) -> None:
    with child("say(Alive()); print('words'); say(Done())", tmp_path) as process:
        assert process.receive(Done) == Done()
    assert (process.exit_code, process.stderr_tail) == (0, "words")
    assert (tmp_path / "log").read_text() == "words\n"


def test_a_jobs_file_tells_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin sees it on the command line of its process, or where it lies."""
    born: list[Path] = []

    def bear(job: Path, ends: Ends, **given: Any) -> Any:
        born.append(job)
        return subprocess.Popen(["true"], start_new_session=True)

    monkeypatch.setattr(nursery, "bear", bear)
    chosen = options(plugins="full_var")
    for task in ("making", "scoring", "making"):
        job = Job(task=task, options=chosen, model=presets.preset("tiny").spec, rows=("full_var",))  # type: ignore[arg-type]
        children.start(job, folder=tmp_path, log=tmp_path / "log").end()
    names = [path.name for path in born]
    assert len(set(names)) == 3, "nothing follows from it, not even what was asked before"
    assert all(re.fullmatch(r"[0-9a-f]{16}\.json", name) for name in names)


@pytest.mark.parametrize("model", ["tiny", "var-d30"])
def test_what_was_resolved_is_the_same_on_the_other_side_of_the_pipe(model: str) -> None:
    """Plans of every kind, studies, published figures, and a row that failed."""
    chosen = options(
        plugins="variant,code@n4,skipvar@s88,dmoe@m50,quant,scalekv@b10,distilled@s1,fastvar@r30,h2o+snapkv,dit,full_var",
        study=("scale_depth_asymmetry",), model=model, weights="random", device="cpu",
    )  # fmt: skip
    made = resolved(Job(task="resolving", options=chosen, model=presets.preset(model).spec), manager())
    assert {"variant@d8", "skipvar@s88", "distilled@s1"} <= {row.name for row in made.rows}
    assert any(row.failure for row in made.rows) and any(row.published for row in made.rows) == (model == "var-d30")
    assert from_line(to_line(made)) == made


def test_stages_of_a_training_are_one_section() -> None:
    def stage(name: str, steps: int) -> TrainedStage:
        looks = (HeldOutLoss(step=steps, point="full", value=2.0, low=1.0, high=3.0, n=64),)
        losses = {"full": ((0, 3.0), (steps, 2.0))}
        return TrainedStage(name=name, steps=steps, seconds=5.0, seed=7, device="cpu", losses=losses, looks=looks)

    log = TrainingLog(
        key="k", origin="here", data="d", stages=(stage("first", 10), stage("second", 4)), making_examples=2
    )
    made = section(log, recipe="mine@recipe", model="tiny")
    assert (made.steps, made.seconds, made.seed, made.origin, made.key) == (14, 12, 7, "here", "k")
    assert made.command == "varbench train mine@recipe --model tiny --steps 14 --seed 7"
    assert [(curve.point, curve.steps) for curve in made.losses] == [
        ("first, full", (0, 10)),
        ("second, full", (10, 14)),
    ]
    assert [(look.step, look.score.value, look.score.reference) for look in made.evaluations] == [
        (10, 2.0, "d"),
        (14, 2.0, "d"),
    ]


@pytest.mark.parametrize("last", [False, True])
def test_an_answer_that_is_waited_for_no_more_is_passed_over(last: bool, tmp_path: Path) -> None:
    """But not that it was the process's last word."""
    old = f"Failed(failure=Failure(status=Status.FAILED, reason='old'), last={last})"
    with child(f"from varbench.record.failure import Failure; say({old}); say(Done())", tmp_path) as process:
        process.forget()
        if last:
            with pytest.raises(ChildEndedError, match="old"):
                process.receive(Done)
        else:
            assert process.receive(Done) == Done()


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("os.kill(os.getpid(), 11)", Status.CRASHED, "SIGSEGV"),
        ("os._exit(7)", Status.CRASHED, "exit code 7"),
        ("print(\"terminate called after throwing 'std::bad_alloc'\", file=sys.stderr, flush=True); os.abort()",
         Status.OUT_OF_MEMORY_HOST, "bad_alloc"),
    ],
)  # fmt: skip
def test_ends_are_told_apart(tmp_path: Path, code: str, status: Status, words: str) -> None:
    with child(f"say(Done()); {code}", tmp_path) as process:
        process.receive(Done)
        with pytest.raises(ChildEndedError, match=words) as ended:
            process.ask(Done(), Done)
    assert ended.value.failure.status is status


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("could not create a primitive"), "RuntimeError: could not create a primitive"),
        (RuntimeError("could not create a memory object"), "RuntimeError: could not create a memory object"),
        (SystemError("error return without exception set"), "SystemError: error return without exception set"),
        (ImportError("libx.so: failed to map segment"), "ImportError: libx.so: failed to map segment"),
    ],
)
def test_what_libraries_say_without_memory_is_a_lack_of_memory(error: Exception, words: str) -> None:
    assert of_exception(error).status is Status.OUT_OF_MEMORY_HOST
    assert of_exception(error).reason == words


@pytest.mark.parametrize("limit", [0.1, 0.02])
def test_a_limit_that_nothing_fits_below_is_named(limit: float) -> None:
    """A child may have none left to say what is wrong."""
    with pytest.raises(UserError, match=rf"a child may take {limit:g} GiB, by --memory-limit: allow it more"):
        prepare(options(plugins="variant@d8", weights="random", memory_limit=limit), name="a")
    with pytest.raises(UserError, match="no plugin 'nothing'") as other:
        prepare(options(plugins="nothing", weights="random", memory_limit=4.0), name="a")
    assert "--memory-limit" not in str(other.value)


@pytest.mark.parametrize("line", ["words", '{"a": 1}', '["Ready", {}]', '["Nothing", {}]', "[1, 2, 3]", '[["a"], 1]'])
def test_what_is_no_message_ends_the_child_and_not_the_run(tmp_path: Path, line: str) -> None:
    with (
        child(
            f"os.write(int(sys.argv[2]), {line.encode()!r} + b'\\n'); import time; time.sleep(60)", tmp_path
        ) as process,
        pytest.raises(ChildEndedError, match="sent what is no message") as ended,
    ):
        process.receive(Done)
    assert ended.value.failure.status is Status.FAILED


@pytest.mark.parametrize(
    ("sent", "asked", "words"),
    [
        ("Done()", {}, "sent Done in the place of Reply"),
        ("made(row='b')", {}, "answered without an answer for a"),
        ("made()", {}, "answered without times of the call"),
        ("made(marks=marks(0.0))", {}, "answered without times of the call"),
        ("made(marks=marks(-1.0))", {}, "answered without times of the call"),
        ("made(marks=marks(1.0, (0.1,)))", {}, "answered without times of the call"),
        ("made(marks=marks(1.0))", {"keep": "images.npz"}, "answered without its images"),
        ("made(marks=marks(1.0))", {"look": "memory"}, "answered without a look at memory"),
        ("made(marks=marks(1.0))", {"look": "outside"}, "answered without a look at outside"),
    ],
)
def test_an_answer_that_lacks_what_was_asked_is_its_rows_failure(
    tmp_path: Path, sent: str, asked: dict[str, Any], words: str
) -> None:
    """A plugin can write to the pipe of its process whatever it likes."""
    code = f"""
    import time
    from varbench.measure.calls import Marks, Reply
    def marks(took, starts=()):
        return Marks(
            clock="perf_counter", starts=starts, logits=(), ends=(), decoded=took, asked=0.0, began=0.0, ended=took
        )
    def made(row="a", **parts):
        return Reply(row=row, images_sha256="", tokens_sha256=None, **parts)
    sys.argv[1] and os.read(int(sys.argv[1]), 10)
    say({sent}); time.sleep(60)
    """
    request = Request(row="a", labels=(0,), seed=0, **asked)
    with child(code, tmp_path) as process, pytest.raises(ChildEndedError, match=words) as ended:
        process.make(request)
    assert ended.value.failure.status is Status.FAILED


def test_calls_of_other_numbers_of_steps_have_no_times_by_scale(tmp_path: Path, script: Script) -> None:
    execution = conduct(a_run(tmp_path, plugins="variant@d8", quick=True), tmp_path)
    execution.everything()
    found, missing = execution.found["variant@d8"], dict[str, str]()
    (first, *others), one = found.speed[0].throughput, found.speed[0]
    longer = replace(first, row=replace(first.row, times=replace(first.row.times, steps=(0.1, 0.2))))
    mixed = replace(found, speed={**found.speed, 0: replace(one, throughput=(longer, *others))})
    made = timing.timing(execution.run, execution.run.rows["variant@d8"], mixed, missing)
    assert made is not None and made.per_scale is None
    assert missing["timing.per_scale"] == "calls had from 1 to 2 steps"


def test_hidden_state_is_looked_for_where_the_plans_own_is_ten_times_what_passes_unseen(
    tmp_path: Path, script: Script
) -> None:
    run = a_run(tmp_path, plugins="variant@d8,variant@d2", batch=32, dtype="bfloat16", rounds=1)
    conduct(run, tmp_path).everything()
    looks = [request for request in script.requests if request.look == "outside" and len(request.labels) > 2]
    asked = {request.row: len(request.labels) for request in looks}
    for name, images in asked.items():
        plan = run.rows[name].plan
        assert plan is not None
        assert max(after for _, after in state_over_time(plan, batch=images, dtype="bfloat16")) >= 10 * honesty.SMALL
    assert asked[FULL] == asked["variant@d8"] == 8 < asked["variant@d2"] <= 32


def test_times_by_scale_add_up_whatever_calls_were_slow_in(tmp_path: Path, script: Script) -> None:
    """Each round's clock is another, and each call is held up in another step."""
    execution = conduct(a_run(tmp_path, plugins="variant@d8", rounds=3), tmp_path)
    execution.everything()
    row, found = execution.run.rows["variant@d8"], execution.found["variant@d8"]

    def call(pair: Pair, clock: float, slow: int) -> Pair:
        steps = tuple(clock * (4.0 if step == slow else 1.0) * (1 + step) for step in range(3))
        return replace(pair, row=replace(pair.row, times=replace(pair.row.times, steps=steps, loop=sum(steps))))

    speeds = {
        number: replace(one, throughput=tuple(call(one.throughput[0], 1.5**number, slow) for slow in range(3)))
        for number, one in found.speed.items()
    }
    made = timing.timing(execution.run, row, replace(found, speed=speeds), {})
    assert made is not None and made.per_scale is not None
    loop = next(one for one in made.columns if (one.column, one.regime) == ("loop", "throughput"))
    assert sum(made.per_scale.seconds) == pytest.approx(loop.median)


def test_the_full_model_alone_is_warm_before_denominators_are_held_against_it(tmp_path: Path, script: Script) -> None:
    """One first call that takes three times as long hid a denominator that was slowed twofold."""
    script.cold = 3.0
    execution = conduct(a_run(tmp_path, plugins="variant@d8", rounds=3), tmp_path)
    execution.everything()
    rounds = execution.found["variant@d8"].speed.values()
    pairs = [pair for one in rounds for some in one.alone.values() for pair in some]
    assert pairs
    assert all(pair.full and pair.full.seen == pytest.approx(pair.row.seen, rel=0.01) for pair in pairs)


@pytest.mark.parametrize(("compiled", "warm"), [("off", 1), ("default", 2)])
def test_calls_before_the_timed_ones_are_as_many_as_something_can_be_set_up_in(
    tmp_path: Path, script: Script, compiled: str, warm: int
) -> None:
    """The full model is timed as a row and beside rows, and is warm once."""
    run = a_run(tmp_path, plugins="variant@d8", rounds=1, count=3, compile=compiled)
    execution = conduct(run, tmp_path)
    execution.everything()
    asked = Counter(request.row for request in script.requests if request.look is None and len(request.labels) == 2)
    assert asked["variant@d8"] == asked[UPSTREAM] == warm + 3 + 1, "and one to the letter as before"
    found = execution.found["variant@d8"].speed[0]
    assert (found.second_call is None) == (warm == 1)
    made = timing.timing(run, run.rows["variant@d8"], execution.found["variant@d8"], {})
    assert made is not None and (made.compile_seconds is None) == (compiled == "off")
    alone = warm + len(found.alone["throughput"])
    beside = asked[FULL] - alone
    timed = {id(pair.full) for name in run.rows for pair in execution.found[name].speed[0].throughput}
    assert beside == warm + len(timed) + 3 + 1


def test_what_the_system_says_of_each_call_that_counts_is_in_the_record(tmp_path: Path, script: Script) -> None:
    execution = conduct(a_run(tmp_path, plugins="variant@d8", rounds=2), tmp_path)
    execution.everything()
    row, found = execution.run.rows["variant@d8"], execution.found["variant@d8"]
    untold = timing.timing(execution.run, row, found, {})
    assert untold is not None and untold.calls == ()

    def told(pair: Pair, number: int) -> Pair:
        seen = Strain(cpu_seconds=2.0, waited_seconds=0.001 * number, stolen_seconds=0.0, switches=number)
        stalled = replace(seen, waited_seconds=0.5 * pair.row.times.end_to_end)
        assert pair.full is not None
        beside = replace(stalled if number == 1 else seen, cpu_seconds=3.0, stolen_seconds=0.25, switches=100 + number)
        full = replace(pair.full, times=pair.row.times, strain=beside)
        return replace(pair, row=replace(pair.row, strain=seen), full=full)

    speeds = {
        number: replace(
            timed,
            throughput=tuple(told(pair, place) for place, pair in enumerate(timed.throughput)),
            latency=tuple(told(pair, place + 1) for place, pair in enumerate(timed.latency)),
        )
        for number, timed in found.speed.items()
    }
    made = timing.timing(execution.run, row, replace(found, speed=speeds), {})
    assert made is not None
    for calls in made.calls:
        (samples,) = {
            column.rounds for column in made.columns if (column.regime, column.column) == (calls.regime, "loop")
        }
        assert [len(some) for some in samples] == [len(some) for some in calls.switches]
        first = int(calls.regime == "latency")
        assert all(some == tuple(range(first, first + len(some))) for some in calls.switches)
        assert calls.waited_seconds[1][-1] == pytest.approx(0.001 * calls.switches[1][-1])
        second = calls.pairs[0][calls.switches[0].index(1)]
        assert second == pytest.approx(0.5), "a pair is as still as the less still of its calls"
        assert calls.delayed[0][calls.switches[0].index(1)][0] == pytest.approx(0.5), "of the full model's call"
        for own, full in zip(calls.switches, calls.beside_switches, strict=True):
            assert full == tuple(100 + number for number in own), "of both calls, pair by pair"
        told_of = {
            (calls.cpu_seconds, 2.0),
            (calls.beside_cpu_seconds, 3.0),
            (calls.stolen_seconds, 0.0),
            (calls.beside_stolen_seconds, 0.25),
        }
        assert all({one for some in rounds for one in some} == {value} for rounds, value in told_of)
        assert max(calls.beside_waited_seconds[0]) > max(calls.waited_seconds[0])
    assert {calls.regime for calls in made.calls} == {"throughput", "latency"}
    apart = replace(
        found,
        speed={
            number: replace(timed, throughput=tuple(replace(pair, full=None) for pair in timed.throughput))
            for number, timed in speeds.items()
        },
    )
    made = timing.timing(execution.run, row, apart, {})
    assert made is not None
    assert [bool(calls.beside_switches) for calls in made.calls] == [False, True], (
        "there is none beside a row by itself"
    )


def test_a_silent_child_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = """
    import subprocess, time
    other = subprocess.Popen(['sleep', '60'])
    open('pid', 'w').write(str(other.pid)); print(os.path.abspath('pid'), flush=True); say(Done()); time.sleep(60)
    """
    began = time.monotonic()
    with child(code, tmp_path, timeout=1.5) as process:
        process.receive(Done)
        other = int(Path((tmp_path / "log").read_text().split()[0]).read_text())
        with pytest.raises(ChildEndedError, match="limit of --timeout") as ended:
            process.receive(Done)
    assert ended.value.failure.status is Status.TIMEOUT
    assert time.monotonic() - began < 15
    time.sleep(0.2)
    assert not runs(other)


def test_a_child_that_speaks_may_take_longer_than_the_limit(tmp_path: Path) -> None:
    code = "import time\nfor _ in range(8): say(Alive()); time.sleep(0.4)\nsay(Done())"
    with child(code, tmp_path, timeout=2.5) as process:
        assert process.receive(Done) == Done()


def test_a_grandchild_that_keeps_the_output_open_holds_nobody_up(tmp_path: Path) -> None:
    began = time.monotonic()
    with child("import subprocess; subprocess.Popen(['sleep', '60']); say(Done())", tmp_path) as process:
        process.receive(Done)
    assert time.monotonic() - began < 15


def test_children_side_by_side_run_at_once_and_one_that_fails_costs_no_other(tmp_path: Path) -> None:
    meet = (
        "import pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / '{0}').write_text('')\n"
        "while not (folder / '{1}').exists(): time.sleep(0.02)\n"
        "say(Done())"
    )
    codes = {
        "first": meet.format("a", "b"),
        "second": meet.format("b", "a"),
        "crashes": "sys.exit('broken')",
        "silent": "import time; time.sleep(60)",
        "last": "say(Done())",
    }
    starts = {
        name: partial(child, code, tmp_path, timeout=2.0 if name == "silent" else 20.0) for name, code in codes.items()
    }
    found = dict(side_by_side(starts, Done, at_once=2))
    assert [found[name] for name in ("first", "second", "last")] == [Done()] * 3
    assert (found["crashes"].status, found["silent"].status) == (Status.CRASHED, Status.TIMEOUT)


def test_a_child_that_says_how_far_it_is_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It says so and goes on only once the other's answer was taken."""
    heard: list[Alive] = []
    talks = (
        "import pathlib, time\n"
        "say(Alive(text='step 1', share=0.5))\n"
        f"while not pathlib.Path({str(tmp_path)!r}, 'taken').exists(): time.sleep(0.02)\n"
        "say(Done())"
    )
    starts = {
        "talks": partial(child, talks, tmp_path, on_alive=heard.append),
        "other": partial(child, "import time; time.sleep(0.5); say(Done())", tmp_path),
    }
    order = []
    for name, said in side_by_side(starts, Done, at_once=2):
        order.append((name, said))
        (tmp_path / "taken").touch()
    assert order == [("other", Done()), ("talks", Done())]
    assert heard == [Alive(text="step 1", share=0.5)]


def test_a_child_imports_nothing_that_lies_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named as a module would shadow it, were the working folder on the path."""
    (tmp_path / "varbench_plugins").mkdir()
    (tmp_path / "varbench_plugins" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    run = prepare(options(plugins="variant@d8", weights="random"), name="a")
    assert run.rows["variant@d8"].resolved.failure is None
    (plugin,) = run.rows["variant@d8"].resolved.plugins
    assert str(tmp_path) not in plugin.files[0]
    (tmp_path / "safetensors.py").write_text("raise SystemExit('the wrong one')")
    files = presets.shipped_files("tiny")
    assert sizes_of(vae=files["vae"], var=files["main"]).depth == 16


# Records that grow


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted(monkeypatch) as made:
        yield made


def test_every_row_ends_as_a_valid_record(tmp_path: Path, script: Script) -> None:
    script.seconds = {"variant@d8": 0.5}
    run = a_run(tmp_path)
    execution = conduct(run, tmp_path)
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    assert {record.status for record in records.values()} == {Status.COMPLETE}
    assert {record.validity.verdict for record in records.values()} == {Verdict.VALID}
    assert {read_record(path).row.row for path in tmp_path.glob("*.json")} == set(run.rows)
    full = records["full_var"]
    assert full.timing is not None and full.timing.largest_batch is not None
    assert full.timing.largest_batch.limit_bytes == round(0.6 * (1 << 30))
    assert [len(column.rounds) for column in full.timing.columns] == [2] * 8
    assert full.why("quality") == "the weights are random"
    (block,) = blocks_of(list(records.values()))
    fast = next(entry for entry in block.entries if entry.name == "variant@d8")
    assert fast.speedups["lossless"].value == pytest.approx(2.0, rel=0.01)
    memory = records["variant@d8"].memory
    planned = records["variant@d8"].plan
    assert memory is not None and planned is not None
    assert memory.activations_peak_bytes == max(step.activation_bytes or 0 for step in planned.steps)


def test_speed_is_left_out_on_request(tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    execution = conduct(a_run(tmp_path, rounds=0), tmp_path)
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    assert {record.status for record in records.values()} == {Status.COMPLETE}
    assert {record.validity.verdict for record in records.values()} == {Verdict.VALID}
    assert all(record.timing is None and record.memory is not None for record in records.values())
    assert all("no faster" not in " ".join(record.validity.reasons) for record in records.values()), "nobody saw that"
    assert records["variant@d8"].why("timing") == "speed was left out, by --rounds 0"
    told = capsys.readouterr().err
    assert all(f"  {name}: " in told for name in records), "each is told when it is finished"


def test_a_full_model_that_fails_is_no_neighbour_and_costs_no_other_row(tmp_path: Path, script: Script) -> None:
    script.fails = {"full_var": "out_of_memory_device"}
    execution = conduct(a_run(tmp_path), tmp_path)
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    assert records["full_var"].status is Status.OUT_OF_MEMORY_DEVICE
    assert records["variant@d8"].status is Status.COMPLETE
    timing = records["variant@d8"].timing
    assert timing is not None and timing.columns[0].beside is None


def test_rows_without_neighbours_are_timed_again_once_the_full_model_runs(tmp_path: Path, script: Script) -> None:
    """As where a child was killed while the full model was timed: a ratio to calls of another time is a poor one."""
    script.fails = {"full_var": "crashed"}
    first = conduct(a_run(tmp_path), tmp_path)
    first.everything()
    assert {record.status for record in first.save_all() if record.row.row != "full_var"} == {Status.COMPLETE}
    script.fails = {}
    again = conduct(a_run(tmp_path), tmp_path)
    assert again.done == {}
    again.everything()
    for record in again.save_all():
        assert record.timing is not None
        assert {column.beside is not None for column in record.timing.columns} == {True}, record.row.row


def test_a_crash_costs_its_row_alone_and_is_not_run_again(tmp_path: Path, script: Script) -> None:
    script.fails = {"variant@d8": "crashed"}
    execution = conduct(a_run(tmp_path), tmp_path)
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    assert records["variant@d8"].status is Status.CRASHED
    assert records["variant@d8"].exit_code == -11
    assert {records[name].status for name in records if name != "variant@d8"} == {Status.COMPLETE}
    assert sum(request.row == "variant@d8" for request in script.requests) == 1


def test_a_row_that_raises_leaves_its_process_to_the_others(tmp_path: Path, script: Script) -> None:
    script.fails = {"variant@d8": "raise"}
    execution = conduct(a_run(tmp_path, plugins="variant@d8,variant@d2", quick=True, rounds=1), tmp_path)
    execution.everything()
    assert sum(task == "making" and rows != ("full_var",) for task, rows in script.started) == 1
    assert execution.found["variant@d2"].failure is None and 0 in execution.found["variant@d2"].speed
    assert execution.found["variant@d8"].failure is not None


def test_on_a_gpu_a_few_rows_share_a_process_and_are_finished_before_the_next_ones(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOGETHER, "cpu", 2)
    script.fails = {"prefix_exit@e8": "interrupt"}
    execution = conduct(
        a_run(tmp_path, plugins="smaller,prefix_exit@e12,prefix_exit@e8", quick=True, rounds=1), tmp_path
    )
    with pytest.raises(KeyboardInterrupt):
        execution.everything()
    groups = [set(rows) - {"full_var"} for task, rows in script.started if task == "making"]
    assert all(len(group) <= 2 for group in groups) and len(groups) > 2
    finished = {
        read_record(path).row.row for path in tmp_path.glob("*.json") if read_record(path).status == Status.COMPLETE
    }
    assert finished, "an interruption costs the rows of its own process"


def test_resume_skips_what_is_complete_and_unchanged(tmp_path: Path, script: Script) -> None:
    script.fails = {"variant@d8": "crashed"}
    conduct(a_run(tmp_path), tmp_path).everything()
    script.fails, before = {}, len(script.started)
    conduct(a_run(tmp_path), tmp_path).everything()
    assert {rows for task, rows in script.started[before:] if task == "making"} <= {
        ("variant@d8",), ("variant@d8", "full_var"), ("full_var",)
    }  # fmt: skip
    assert {read_record(path).status for path in tmp_path.glob("*.json")} == {Status.COMPLETE}
    assert complete_records(a_run(tmp_path, seed=1), tmp_path) == {}


def test_what_other_inputs_made_is_set_aside_and_other_settings_are_named(tmp_path: Path, script: Script) -> None:
    conduct(a_run(tmp_path), tmp_path).everything()
    paths = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    same = a_run(tmp_path)
    assert set_aside_outdated(same, tmp_path) == ()
    assert other_settings(same, tmp_path) == {}
    assert other_settings(a_run(tmp_path, batch=4, seed=1), tmp_path) == {"batch": (2, 4), "seed": (0, 1)}

    same.rows["variant@d8"] = replace(same.rows["variant@d8"], inputs="changed")
    assert set_aside_outdated(same, tmp_path) == ("variant@d8",)
    (old,) = tmp_path.glob("*.json.old")
    (gone,) = set(paths) - set(tmp_path.glob("*.json"))
    assert old.read_bytes() == paths[gone]


def test_a_cache_that_cannot_be_written_costs_no_row(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")  # permissions would not stop root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    execution = conduct(a_run(tmp_path / "run"), tmp_path / "run")
    execution.everything()
    assert {record.status for record in execution.save_all()} == {Status.COMPLETE}
    made: list[str] = []

    def compute() -> dict[str, Any]:
        made.append("features")
        return {"features": np.ones(3)}

    for _ in range(2):
        assert cached_arrays("an input", compute=compute)["features"].sum() == 3
    assert made == ["features", "features"], "nothing was kept, and nothing was lost"


@pytest.mark.slow
def test_a_later_run_measures_anew_only_what_may_differ(tmp_path: Path, script: Script) -> None:
    def looks(folder: str, **changed: Any) -> int:
        before = len(script.requests)
        execution = conduct(a_run(tmp_path / folder, **changed), tmp_path / folder)
        execution.everything()
        records = execution.save_all()
        assert {record.status for record in records} == {Status.COMPLETE}
        found = sum(request.look == "memory" for request in script.requests[before:])
        assert all(any("earlier run" in notice.text for notice in record.warnings) == (not found) for record in records)
        return found

    assert looks("a") == 5
    assert looks("b") == 0
    # Other inputs (here: more rounds), or --fresh, and nothing of it is taken.
    assert looks("c", rounds=3) == 5
    assert looks("d", fresh=True) == 5


def test_a_dry_run_leaves_out_the_time_of_what_earlier_runs_have_left(tmp_path: Path, script: Script) -> None:
    def foreseen(folder: str, *, trained: str = "1", **given: Any) -> Forecast:
        ahead = Ahead(
            origins={"variant@progressive": "shipped"}, hashes={"variant@progressive": {"main": trained, "vae": "2"}}
        )
        return forecast(a_run(tmp_path / folder, plugins="variant@d8", **given), tmp_path / folder, {}, weights=ahead)

    new = foreseen("new")
    first = conduct(a_run(tmp_path / "first", plugins="variant@d8"), tmp_path / "first")
    first.everything()
    again = foreseen("again")
    assert {row.row: row.cached for row in again.rows} == dict.fromkeys(first.run.rows, ("memory",))
    assert "memory cached" in as_text(again) and "cached" not in as_text(new)
    assert again.processes < new.processes
    assert again.seconds is not None and new.seconds is not None and again.seconds < new.seconds
    assert {row.cached for row in foreseen("fresh", fresh=True).rows} == {()}

    # Parts of trained weights are those of the same hashes.
    given = {"weights": None, "images": 40}
    trained = Trained(log=None, files={}, hashes={"main": "1", "vae": "2"})
    odd = Oddities(repeated=0, copied=None, undecoded=None)
    scored = Scored(quality=None, distance=None, samples=Samples(), weights=(), oddities=odd)
    there = KeptParts(a_run(tmp_path / "trained", plugins="variant@d8", **given), tmp_path / "trained" / PARTS)
    there.write(Seen(scored=scored), "variant@d8", trained=trained)
    assert [row.cached for row in foreseen("trained", **given).rows if row.row == "variant@d8"] == [("quality",)]
    assert {row.cached for row in foreseen("trained", trained="other", **given).rows} == {()}


@pytest.mark.parametrize(
    ("measured", "how"), [(False, "a bound by the roofline"), (True, "by what was measured of this machine")]
)
def test_a_dry_run_calls_a_bound_what_nobody_measured(
    measured: bool, how: str, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = replace(KNOWN["cpu-2-cores"], measured=measured)
    monkeypatch.setattr("varbench.show.forecast.hardware_like", lambda *asked: device)
    found = forecast(a_run(tmp_path, plugins="variant@d8"), tmp_path, {}, weights=Ahead(origins={}))
    assert found.bound is not measured and f"({how})" in as_text(found)


def test_an_interrupted_run_goes_on_with_what_it_had(tmp_path: Path, script: Script) -> None:
    script.fails = {"variant@d2": "interrupt"}
    first = conduct(a_run(tmp_path, fresh=True), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.everything()
    first.save_all()
    assert {read_record(path).status for path in tmp_path.glob("*.json")} == {Status.INTERRUPTED}
    looked = [request.row for request in script.requests if request.look == "memory"]
    script.fails, before = {}, len(script.requests)
    again = conduct(a_run(tmp_path, fresh=True), tmp_path)
    again.everything()
    later = [request.row for request in script.requests[before:] if request.look == "memory"]
    assert "variant@d2" in later
    assert not set(later) & (set(looked) - {"variant@d2"})
    assert {read_record(path).status for path in tmp_path.glob("*.json")} == {Status.COMPLETE}


def test_what_is_written_while_a_run_goes_on_is_not_taken_for_measured(tmp_path: Path, script: Script) -> None:
    """A plugin's process can write where parts, records and findings of earlier runs lie, and date its files as it likes."""
    honest = conduct(a_run(tmp_path / "honest"), tmp_path / "honest")
    honest.everything()
    record = next(record for record in honest.save_all() if record.row.row == "variant@d8")
    found = honest.found["variant@d8"]
    assert found.looks is not None and found.looks.kernel == "k"

    def forge(folder: Path) -> Conduct:
        forged = conduct(a_run(folder), folder)
        kept = KeptParts(forged.run, forged.parts)
        looks = kept.path(Looks, "variant@d8", trained=None)
        parts: dict[Path | None, Any] = dict.fromkeys(
            (looks, kept._place(looks)), replace(found.looks, kernel="forged")
        )
        parts[kept.path(SpeedRound, "variant@d8", 0, trained=None)] = replace(found.speed[0], first_call=99.0)
        for path, part in parts.items():
            assert path is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            keep(part, path)
            os.utime(path, (0, 0))
        os.utime(write_record(replace(record, reason="forged"), folder), (0, 0))
        return forged

    execution = forge(tmp_path / "run")
    assert complete_records(execution.run, execution.out) == {}
    execution.everything()
    looks, speed = execution.found["variant@d8"].looks, execution.found["variant@d8"].speed
    assert looks is not None and looks.kernel == "k"
    assert speed[0].first_call < 2
    assert {record.reason for record in execution.save_all()} == {None}

    # What lay there when a run began is: one that was interrupted goes on, at the price that docs/results.md names.
    left = forge(tmp_path / "left")
    later = conduct(a_run(left.out), left.out)
    assert set(later.done) == {"variant@d8"}
    kept = KeptParts(later.run, later.parts).read(SpeedRound, "variant@d8", 0, trained=None)
    assert kept is not None and kept.first_call == 99.0


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_interrupts_as_ctrl_c_does(ctrl_c: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where that is switched off too, as for a job in the background."""
    before, usual = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_torn_record_is_measured_again(tmp_path: Path, script: Script) -> None:
    run = a_run(tmp_path)
    conduct(run, tmp_path).everything()
    torn = next(path for path in tmp_path.glob("variant*.json") if read_record(path).row.row == "variant@d2")
    torn.write_text(torn.read_text()[:100])
    assert set(run.rows) - set(complete_records(a_run(tmp_path), tmp_path)) == {"variant@d2"}


def test_a_full_disk_leaves_the_old_record_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    execution = conduct(a_run(tmp_path), tmp_path)
    execution.save_all()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}

    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        execution.everything()
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert not list(tmp_path.glob("*.partial"))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another run is working"), locked(tmp_path):
        pass


def test_a_run_never_writes_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"schema": 1}))
    assert main(["run", "--plugins", "variant", "--weights", "random", "--out", str(tmp_path)]) == 2
    assert "holds records already" in capsys.readouterr().err


# What a child ran is what was prepared


def test_another_plan_in_a_child_makes_the_row_invalid_with_both_digests(tmp_path: Path, script: Script) -> None:
    run = a_run(tmp_path)
    script.digests = {"variant@d8": "0" * 64}
    execution = conduct(run, tmp_path)
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    plan = run.rows["variant@d8"].plan
    assert plan is not None
    assert records["variant@d8"].validity.verdict is Verdict.INVALID
    reason = "; ".join(records["variant@d8"].validity.reasons)
    assert "000000000000" in reason and plan.digest[:12] in reason
    assert records["variant@d2"].validity.verdict is Verdict.VALID


def test_a_plan_that_a_child_does_not_name_is_another_plan(tmp_path: Path, script: Script) -> None:
    script.unsaid = True
    execution = conduct(a_run(tmp_path, plugins="variant@d8", quick=True), tmp_path)
    execution.everything()
    for record in execution.save_all():
        assert record.validity.verdict is Verdict.INVALID
        assert "a child compiled no plan, and" in "; ".join(record.validity.reasons)


def test_weights_that_a_child_does_not_name_are_other_weights(tmp_path: Path, script: Script) -> None:
    """Of the parts that its rows run on; of others, only what it names counts."""
    files = {"vae": "v", "main": "m", "narrow": "n"}
    run = replace(a_run(tmp_path, plugins="variant@d8"), files=files, hashes={part: part * 20 for part in files})
    job = run.job(task="making", rows=("variant@d8",))
    loaded = ScriptedChild(job, script).receive(Ready)

    def found(**weights: str) -> list[str]:
        return mismatches(run, run.rows["variant@d8"], replace(loaded, weights=weights), None, asked=job)

    whole = {"vae": "vae" * 20, "main": "main" * 20}
    assert found(**whole) == []
    assert found(vae=whole["vae"]) == ["a child loaded no main, and mainmainmain was prepared"]
    assert found(**whole, narrow="other") == ["a child loaded the narrow other, and narrownarrow was prepared"]


def test_the_full_model_alone_is_held_to_its_job_too(tmp_path: Path, script: Script) -> None:
    """What denominators are held against would say nothing if it ran something else."""
    script.job, script.of = "1" * 64, FULL
    execution = conduct(a_run(tmp_path, plugins="variant@d8"), tmp_path)
    with execution._full_alone(()) as alone:
        assert alone is not None
        alone.begin()
    assert "told to do 111111111111, and" in "; ".join(execution.found[FULL].mismatches)


def test_the_full_model_alone_gives_memory_back_where_a_gpu_does_not_hold_it_beside_the_rows(tmp_path: Path) -> None:
    run = a_run(tmp_path, plugins="variant@d8", device="cuda", batch=64)
    both = 2 * needed(run.rows[FULL].plan, batch=64, dtype=run.options.dtype, device="cuda")  # type: ignore[arg-type]  # it has one
    assert _fit_together(run, ("variant@d8",), memory=round(KEPT * both / 0.9) + 2**20)
    assert not _fit_together(run, ("variant@d8",), memory=both)
    assert _fit_together(run, ("variant@d8",), memory=None)


def test_a_childs_first_word_is_its_job_and_no_answer(tmp_path: Path) -> None:
    code = "import time; say(Told(job='a' * 64)); time.sleep(1); say(Done())"
    with child(code, tmp_path, asked="a" * 64) as process:
        heard = time.monotonic()
        while not process.listen():
            time.sleep(0.01)
        assert time.monotonic() - heard > 0.9
        assert process.receive(Done) == Done()


@pytest.mark.parametrize(("first", "named"), [("Told(job='b' * 64)", "bbbbbbbbbbbb"), ("Done()", "nothing it n")])
def test_a_child_that_does_not_name_its_job_is_ended(tmp_path: Path, first: str, named: str) -> None:
    words = f"a child was told to do {named}, and aaaaaaaaaaaa was asked of it"
    with child(f"import time; say({first}); time.sleep(60)", tmp_path, asked="a" * 64) as process:
        with pytest.raises(ChildEndedError, match=words):
            process.receive(Done)
        assert process.exit_code == -signal.SIGKILL


def test_other_settings_in_a_child_make_its_rows_invalid_with_both_digests(tmp_path: Path, script: Script) -> None:
    """As where the file with its job was written over."""
    script.job = "1" * 64
    execution = conduct(a_run(tmp_path, plugins="variant@d8", quick=True), tmp_path)
    execution.everything()
    for record in execution.save_all():
        assert record.validity.verdict is Verdict.INVALID
        for reason in record.validity.reasons:
            assert "told to do 111111111111, and" in reason
            assert reason.endswith("; change nothing meanwhile, and measure again")


def test_a_gpu_that_is_not_what_its_name_says_or_is_shared_makes_its_rows_invalid(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "it was slowed down by heat for 3% of the time"
    monkeypatch.setattr("varbench.measure.board_state.BoardWatch.unfit", lambda watch: (slow,))
    monkeypatch.setattr("varbench.measure.board_state.BoardWatch.unseen", "other processes cannot be seen")
    looks: list[object] = []
    monkeypatch.setattr("varbench.measure.board_state.BoardWatch.poll", lambda watch: looks.append(watch))
    script.disturbed = (4711,)
    run = a_run(tmp_path, plugins="variant@d8")
    conducted = conduct(run, tmp_path)
    conducted.everything()
    for record in conducted.records():
        assert record.validity.verdict is Verdict.INVALID
        told = "; ".join(record.validity.reasons)
        assert f"the GPU was not what its name says, or not alone: {slow}" in told
        assert record.missing["timing.board"] == "other processes cannot be seen"
        assert "others were on the GPU, processes 4711" in told
        assert all("`nvidia-smi -q` shows it" in reason for reason in record.validity.reasons)
    calls = sum(request.look is None for request in script.requests)
    assert calls / 2 < len(looks) < calls, "before every call but those of the full model alone"


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"measuring": "f" * 64}, "a child runs varbench's code ffffffffffff, and {code} was prepared"),
        ({"plugin_hashes": {"variant": "f" * 64}}, "a child imported variant of code ffffffffffff, and {hash} was prepared"),
        ({"plugin_hashes": {}}, "a child imported variant of code None, and {hash} was prepared"),
        ({"plugin_files": {"variant": ("/elsewhere",)}}, "a child imported variant from /elsewhere, and {file} was prepared"),
        ({"plugin_files": {}}, "a child imported variant from nowhere, and {file} was prepared"),
    ],
)  # fmt: skip
def test_other_code_in_a_child_makes_the_row_invalid_with_both_values(
    says: dict[str, Any], words: str, tmp_path: Path, script: Script
) -> None:
    """Also where it changed while it was measured: a child reads it anew."""
    script.says = says
    run = a_run(tmp_path, plugins="variant@untrained/d8", quick=True, rounds=1)
    execution = conduct(run, tmp_path)
    execution.everything()
    record = next(record for record in execution.save_all() if record.row.row == "variant@untrained/d8")
    (plugin,), (version,) = run.rows[record.row.row].resolved.plugins, record.row.plugins
    prepared = {"code": run.code[:12], "hash": str(version.code_hash)[:12], "file": plugin.files[0]}
    assert record.validity.verdict is Verdict.INVALID
    assert any(reason.startswith(words.format(**prepared)) for reason in record.validity.reasons)


def test_what_trains_and_what_calibrates_tell_their_code_too(tmp_path: Path, script: Script) -> None:
    """Else a plugin that is another while it trains would be taken for the one that was prepared."""
    run, name = a_run(tmp_path, plugins="variant@d8", weights=None, images=0), "variant@d8"
    told: list[Trained] = []
    training.run(run.job(task="training", rows=(name,)), cast(Channel, SimpleNamespace(send=told.append)))
    (trained,) = told
    loaded = ScriptedChild(run.job(rows=(name,)), script).receive(Ready)

    def differs(trained: Trained, calibrated_by: ChildCode | None = None) -> list[str]:
        row = replace(run.rows[name], calibrated_by=calibrated_by)
        return [line for line in mismatches(run, row, loaded, trained, asked=run.job(rows=(name,))) if "code" in line]

    assert trained.code is not None and differs(trained, trained.code) == []
    edited = replace(trained.code, plugin_hashes={"variant": "f" * 64})
    (version,) = run.rows[name].identity.plugins
    words = f"variant of code ffffffffffff, and {str(version.code_hash)[:12]} was prepared"
    assert differs(replace(trained, code=edited)) == [f"the child that trained imported {words}"]
    assert differs(trained, edited) == [f"the child that calibrated imported {words}"]
    assert differs(replace(trained, code=None)) == ["the child that trained did not say what code it runs"]


@pytest.mark.parametrize("told", ["0" * 64, ""])
def test_a_timed_call_that_left_another_trace_makes_the_row_invalid_with_both_hashes(
    told: str, tmp_path: Path, script: Script
) -> None:
    script.traces = {"variant@d8": told}
    run = a_run(tmp_path, plugins="variant@d8,variant@d2", quick=True, rounds=1)
    execution = conduct(run, tmp_path)
    execution.everything()
    records = {record.row.row: record for record in execution.save_all()}
    plan = run.rows["variant@d8"].plan
    assert plan is not None
    for images in (1, 2):
        expected = foreseen(plan, batch=images, dtype="float32").digest[:12]
        said = f"{images} images of variant@d8 left the trace {told[:12] or 'that nobody told'}, and {expected} follows"
        assert said in "; ".join(records["variant@d8"].validity.reasons)
    assert records["variant@d2"].validity.verdict is Verdict.VALID
    script.traces = {FULL: told}
    again = conduct(a_run(tmp_path / "full", plugins="variant@d2", quick=True, rounds=1), tmp_path / "full")
    again.everything()
    assert {record.validity.verdict for record in again.save_all()} == {Verdict.INVALID}, (
        "denominators count in all rows"
    )


# What decides a result


def test_a_reference_counts_by_what_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """Another image in the folder is another input; another name or working folder is not."""
    folder = tmp_path / "one" / "reference"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"one")

    def inputs(path: str) -> str:
        return prepare(options(reference=path, plugins="variant@d8"), name="a").rows["variant@d8"].inputs

    first = inputs(str(folder))
    monkeypatch.chdir(tmp_path / "one")
    assert inputs("reference") == first
    (tmp_path / "two").mkdir()
    (folder.rename(tmp_path / "two" / "renamed")).joinpath("a.png").write_bytes(b"one")
    assert inputs(str(tmp_path / "two" / "renamed")) == first
    (tmp_path / "two" / "renamed" / "a.png").write_bytes(b"other")
    assert inputs(str(tmp_path / "two" / "renamed")) != first


def test_images_of_the_full_model_are_found_again_under_its_rows_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    """Which cover the code of its plugin: other code is another full model."""
    run, jobs = a_run(tmp_path), list[Job]()

    def start(job: Job, **given: Any) -> Any:
        jobs.append(job)
        raise ChildEndedError(Failure(status=Status.CRASHED, reason="as told"))

    monkeypatch.setattr(children, "start", start)
    for inputs in ("one", "other"):
        run.rows[FULL] = replace(run.rows[FULL], inputs=inputs)
        with pytest.raises(ChildEndedError), Scorers(run, folder=tmp_path, log=tmp_path / "log") as scorers:
            scorers.liken(tmp_path, tmp_path)
    assert [job.full_images for job in jobs] == ["one", "other"]


@pytest.mark.parametrize("kind", ["features", "judge"])
def test_the_presets_own_networks_count_by_what_is_in_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    """Scores of another network are not taken over: neither by --resume nor from the cache of parts. A file in its place counts."""
    monkeypatch.setattr(presets, "scoring_network", lambda model, kind: tmp_path / kind)
    for name in ("features", "judge", "given"):
        (tmp_path / name).write_bytes(b"one")

    def inputs(**given: Any) -> str:
        return prepare(options(plugins="variant@d8", **given), name="a").rows["variant@d8"].inputs

    first, given, unscored = inputs(), inputs(**{kind: str(tmp_path / "given")}), inputs(weights="random")
    (tmp_path / kind).write_bytes(b"other")
    assert inputs() != first
    assert inputs(**{kind: str(tmp_path / "given")}) == given
    assert inputs(weights="random") == unscored


def test_the_modules_beside_a_plugin_are_those_that_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else was loaded from there: processes that hold other plugins must find the same ones."""
    sources = {"mine": "import helper", "helper": "def later():\n    from deeper import it", "deeper": "", "other": ""}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = {name: importlib.import_module(name) for name in ("other", "mine")}
    assert files_of(loaded["mine"]) == tuple(str(tmp_path / f"{name}.py") for name in ("mine", "helper", "deeper"))
    for name in sources:
        sys.modules.pop(name, None)


def test_a_plugins_helper_module_and_data_are_part_of_what_decides(tmp_path: Path) -> None:
    package = tmp_path / "method"
    package.mkdir()
    for name in ("__init__.py", "helper.py", "table.json"):
        (package / name).write_text("1")
    (tmp_path / "alone.py").write_text("1")
    (tmp_path / "beside.py").write_text("1")

    def hashes() -> tuple[str | None, str | None]:
        whole = ResolvedPlugin(name="m", distribution="no distribution", version="1", files=(str(package),))
        single = replace(whole, files=(str(tmp_path / "alone.py"), str(tmp_path / "beside.py")))
        return identity.plugin_hash(whole), identity.plugin_hash(single)

    before = hashes()
    (package / "table.json").write_text("2")
    (tmp_path / "beside.py").write_text("2")
    assert all(one != other for one, other in zip(before, hashes(), strict=True))


def test_all_of_a_packages_distribution_is_part_of_what_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another package of it too, which the plugin may take anything from; but for the commands, which name an interpreter."""
    site = tmp_path / "lib" / "site"
    listed = ("method/__init__.py", "helpers/__init__.py", "helpers/table.json", "../../bin/method")
    for name in listed:
        (site / name).resolve().parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("1")
    about = site / "method-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: method\nVersion: 1.0\n")
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    monkeypatch.syspath_prepend(str(site))
    whole = ResolvedPlugin(name="m", distribution="method", version="1.0", files=(str(site / "method"),))
    known = {identity.plugin_hash(whole)}
    for count, name in enumerate(listed[:3], 2):
        (site / name).write_text("2")
        known.add(identity.plugin_hash(whole))
        assert len(known) == count, name
    (site / "../../bin/method").write_text("#!/elsewhere/python")
    assert identity.plugin_hash(whole) in known


def test_where_a_plugin_is_installed_from_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable installation brings a file that holds its path."""

    def hashed(place: Path) -> str | None:
        place.mkdir()
        (place / "movable.py").write_text("1")
        about = place / "movable-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: movable\nVersion: 1.0\n")
        (about / "RECORD").write_text("__editable__.movable-1.0.pth,,\nmovable.py,,\n")
        (place / "__editable__.movable-1.0.pth").write_text(str(place))
        monkeypatch.syspath_prepend(str(place))
        files = (str(place / "movable.py"),)
        return identity.plugin_hash(ResolvedPlugin(name="m", distribution="movable", version="1.0", files=files))

    assert hashed(tmp_path / "one") == hashed(tmp_path / "two") is not None


def test_images_that_are_asked_for_are_made_without_a_reference_too(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    given = {"weights": str(file), "vae": str(file), "model": "var-d16", "device": "cpu"}
    assert options(**given).images == 0
    assert options(**given, images=40).images == 40
    assert options(weights="random", model="var-d16", device="cpu", images=40).images == 0


# Where the run is


def test_the_display_begins_with_what_a_dry_run_says(tmp_path: Path, script: Script) -> None:
    for quick in (False, True):
        run = run_command._foreseen(a_run(tmp_path, plugins="variant@d8", quick=quick), tmp_path)
        shown = Display(parts(run), run.part_seconds)
        said = forecast(run, tmp_path, {}, weights=Ahead(origins={})).seconds
        assert said is not None and shown.seconds_left() == pytest.approx(said)


def test_a_subject_compiles_and_runs_what_was_prepared_for_every_method_that_ships() -> None:
    """Second models too, whose files say sizes and no name. What is seen of a call is what follows from the plan."""
    from varbench.run.tasks import making

    run = prepare(options(plugins="variant@d8,fastvar@r30,scale_window@w1,scalekv,prefix_exit,code@n4"), name="a")
    names = tuple(name for name, row in run.rows.items() if row.plan is not None)
    assert len(names) > 7
    subject, ready = making.load(run.job(rows=names))
    assert ready.plans == {name: run.rows[name].plan.digest for name in names if run.rows[name].plan}
    for name in names:
        row = run.rows[name]
        assert mismatches(run, row, ready, None, asked=run.job(rows=names)) == []
        reply = making.answer(subject, Request(row=name, labels=(3,), seed=1))
        assert row.plan and reply.trace_sha256 == foreseen(row.plan, batch=1, dtype=run.options.dtype).digest
