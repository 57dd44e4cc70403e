"""Calibration: what it returns is all that a record needs, and the command prints the row to run."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import pytest
from conftest import CommandLine
from scripted import options

from varbench import rows
from varbench.__main__ import main
from varbench.check.bench import given
from varbench.commands import calibrate as command
from varbench.engine import calibration
from varbench.engine.calibration import Calibration, calibrate
from varbench.engine.pipeline import Pipeline
from varbench.plan.presets import preset
from varbench.policies import Parameter, Settings
from varbench.rows.manager import PluginError
from varbench.run.fill import fill
from varbench.run.findings import Findings
from varbench.run.messages import Job
from varbench.run.prepare import prepare
from varbench.run.tasks.resolving import resolved


class Found:
    """Finds what it is told to."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def varbench_settings(self, model: Any) -> Settings:
        return Settings(parameters={"first": Parameter(default=1, help=""), "on": Parameter(default=False, help="")})

    def varbench_calibrate(self, setting: Any, pipe: Any) -> Any:
        return self.result


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def calibrated(result: Any, pipe: Pipeline) -> Calibration:
    manager = given(pipe.model, "acme", Found(result)).manager
    return calibrate(rows.resolve("acme+variant@d2", pipe.model, manager=manager), pipe, manager=manager)


def test_all_that_a_record_needs_comes_back(pipe: Pipeline) -> None:
    found = calibrated({"seen": [1, 2], "parameters": {"first": 3, "on": True}}, pipe)
    assert (found.asked, found.row.name) == ("acme+variant@d2", "acme:first=3:on=true+variant@d2")
    assert found.parameters == {"acme.first": 3, "acme.on": True}
    assert found.row.settings[0].parameters == {"first": 3, "on": True}
    assert found.seconds > 0
    kept = json.loads(found.path.read_text())
    assert (kept["digest"], kept["row"], kept["found"]["acme"]["seen"]) == (found.digest, found.asked, [1, 2])
    assert found.path.name == f"{found.digest[:32]}.json"
    assert calibrated({"parameters": {"first": 4}}, pipe).digest != found.digest
    with pytest.raises(FrozenInstanceError):
        found.digest = ""  # type: ignore[misc]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([3], r"plugin 'acme' \(.*\): varbench_calibrate gave \[3\]; give a dict"),
        ({"parameters": [3]}, "with parameters as a dict"),
        ({"mean": float("nan")}, "found what is no JSON"),
        ({"set": {1}}, "found what is no JSON: Object of type set"),
        ({"parameters": {"frist": 3}}, "acme has no parameter 'frist'. Did you mean 'first'"),
        ({"parameters": {"first": "many"}}, "acme: first is 'many'; give a whole number"),
    ],
)
def test_what_cannot_be_kept_is_the_plugins_failure(pipe: Pipeline, result: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        calibrated(result, pipe)


def test_the_command_prints_the_row_to_run(varbench: CommandLine) -> None:
    random = ("--weights", "random")
    done = varbench("calibrate", "scale_window@w1:share=0.5", *random)
    assert done.returncode == 0, done.stderr
    row, parameter, cost, path = done.stdout.splitlines()
    demanding = row.partition("demanding=")[2].partition(":")[0]
    assert len(demanding.split(".")) == 8, "half of the sixteen layers"
    assert parameter == f"  scale_window.demanding = {demanding}"
    assert cost.startswith("found by calibrating scale_window@w1:share=0.5 in ")
    assert json.loads(Path(path).read_text())["row"] == "scale_window@w1:share=0.5"
    assert f"next: varbench run --plugins {row}" in done.stderr
    assert varbench("plan", row).returncode == 0
    shown = json.loads(varbench("calibrate", "scale_window@w1:share=0.5", *random, "--json").stdout)
    assert (shown["row"], shown["path"]) == (row, path)


def test_the_command_that_comes_next_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row may name a file, and so hold what a shell would part."""
    name = "scale_window@w1:file=with a space"
    found = SimpleNamespace(row=SimpleNamespace(name=name), parameters={}, asked="a", seconds=1.0, path="b")
    monkeypatch.setattr(
        command, "open_pipeline", lambda given, **more: (SimpleNamespace(model=preset("tiny").spec), {})
    )
    monkeypatch.setattr(calibration, "calibrate", lambda *given, **more: found)
    assert main(["calibrate", "scale_window@w1"]) == 0
    assert f"next: varbench run --plugins '{name}'\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("variant@d8", "variant@d8 has nothing to calibrate"),
        ("scale_window", "'scale_window' stands for"),
        ("scalewindow", "Did you mean 'scale_window'"),
    ],
)
def test_a_mistake_is_told(capsys: pytest.CaptureFixture[str], row: str, message: str) -> None:
    assert main(["calibrate", row, "--weights", "random"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err


UNCALIBRATED = ("skipvar@s88", "scale_window@w1:share=0.5", "hack@r50", "scalekv@b25+variant@untrained/d8")


def test_run_warns_once_of_rows_that_were_not_calibrated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else was given of them; not of those that were, nor of methods that have no offline pass."""
    monkeypatch.chdir(tmp_path)
    plugins = ",".join((*UNCALIBRATED, "scale_window@w1:demanding=0.3", "h2o@b50"))
    run = ["run", "--plugins", plugins, "--weights", "random", "--dry-run"]
    assert main([*run, "--batch", "1,8"]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: not calibrated")]
    assert warning == (
        f"warning: not calibrated, so with what its method has by default: {', '.join(UNCALIBRATED)}; next: the same "
        "command with --calibrate, or varbench calibrate ROW"
    )
    assert main(["run", "--plugins", "scale_window@w1:demanding=0.3,h2o@b50", *run[3:]]) == 0
    assert "not calibrated" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("acme", True), ("acme:first=3", False), ("acme+variant@untrained/d2:bridge=3", True)]
)
def test_where_a_plugin_does_not_say_what_calibration_finds_any_parameter_will_do(text: str, expected: bool) -> None:
    manager = given(models.SPEC, "acme", Found({})).manager
    job = Job(task="resolving", options=options(plugins=text, weights="random"), model=models.SPEC)
    assert [row.uncalibrated for row in resolved(job, manager).rows if row.calibrates] == [expected]


def test_run_calibrates_rows_first_and_the_record_says_what_it_cost(tmp_path: Path) -> None:
    """In children of its own: the row that is measured has what was found written into it."""
    asked = options(plugins="scale_window@w1", weights="random", calibrate=True, dtype="float32")
    run = prepare(asked, name="a")
    (name,) = [name for name in run.rows if name.startswith("scale_window@w1")]
    assert name.startswith("scale_window@w1:demanding=")
    record = fill(run, run.rows[name], Findings(), floors={})
    assert record.calibration is not None
    assert record.calibration.asked == "scale_window@w1"
    assert record.calibration.seconds > 0
    assert list(record.calibration.parameters) == ["scale_window.demanding"]
    assert prepare(options(plugins=name, weights="random", dtype="float32"), name="a").rows[name].calibration is None
