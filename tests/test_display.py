"""The live display of runs and trainings: what it shows on a terminal and elsewhere, and how it reckons the time left."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import a_run, conduct, options, scripted

from varbench import rows
from varbench.base import display as display_module
from varbench.base.display import Bar, Display, shown
from varbench.plan import presets
from varbench.run.messages import Alive, Trained
from varbench.run.prepare import prepare
from varbench.run.session import carry_out, foreseen, parts
from varbench.run.trainings import Trainings
from varbench.train import progress
from varbench.train.progress import followed
from varbench.train.recipes import RecipeWeights, in_one_display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the display and trainings take the time from."""
    now = [0.0]
    for module in (display_module, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@dataclass
class Drawn:
    """Stands in for the terminal library's bar."""

    state: dict[str, Any] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)

    def add_task(self, title: str, **state: Any) -> int:
        return 0

    def update(self, task: int, **state: Any) -> None:
        self.state = state

    @property
    def console(self) -> Any:
        return SimpleNamespace(print=lambda text, **how: self.printed.append(text))


# The time left


def test_time_left_is_reckoned_from_parts_of_the_same_kind(clock: list[float]) -> None:
    display = Display({"training": 1, "speed": 3})
    assert display.seconds_left() is None
    for kind, seconds in (("training", 100.0), ("speed", 10.0)):
        with display.part(kind, ""):
            clock[0] += seconds
    assert display.seconds_left() == 20
    with display.part("speed", ""):
        clock[0] += 4
        assert display.seconds_left() == 16
        clock[0] += 40
        assert display.seconds_left() == 10, "a part that takes longer takes nothing from the next one"


def test_before_a_kind_has_a_finished_part_its_prediction_stands_at_the_machines_pace(clock: list[float]) -> None:
    display = Display({"images": 2, "speed": 3}, {"images": 10.0, "speed": 20.0})
    assert display.seconds_left() == 80
    with display.part("images", ""):
        clock[0] += 15  # half as long again
    assert display.seconds_left() == 15 + 1.5 * 60
    with display.part("images", ""):
        clock[0] += 1  # what was there already says nothing of the machine
    assert display.seconds_left() == 60


def test_a_part_that_says_how_far_it_is_tells_the_time_of_itself_and_of_those_that_follow(clock: list[float]) -> None:
    """By size: two trainings of 100 and 300 steps. The first step is slow, and after a crash is not step one."""
    display = Display({"training": [100, 300]})
    with display.part("training", "", size=100):
        clock[0] += 50
        display.reached(0.40)
        assert display.seconds_left() is None
        clock[0] += 10
        display.reached(0.50)
        assert display.seconds_left() == pytest.approx(50 + 300)
        clock[0] += 5
        assert display.seconds_left() == pytest.approx(45 + 300)
        clock[0] += 45
    with display.part("training", "", size=300):
        assert display.seconds_left() == pytest.approx(330), "of those that are finished all counts"


def test_what_is_there_already_is_not_waited_for(clock: list[float]) -> None:
    display = Display({"tokens": [640], "training": [100, 300]})
    with display.part("training", "", size=100):
        clock[0] += 100
    assert display.seconds_left() is None
    display.spare("tokens", 640)
    assert display.seconds_left() == 300
    display.spare("training", 300)
    display.spare("training", 300)  # nothing of it was to come
    assert display.seconds_left() == 0


# A terminal, and none


def test_without_a_terminal_a_part_tells_once_a_minute_where_it_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display({"speed": 2}, {"speed": 300.0})
    with display.part("speed", "round 1"):
        for seconds in range(0, 150, 10):
            clock[0] = float(seconds)
            display.detail(f"row at {seconds}")
    first, *later = capsys.readouterr().err.splitlines()
    assert first == "[1/2, 0 s, about 10 min left] speed: round 1"
    assert later == [
        "  speed: round 1: row at 70, about 9 min left",
        "  speed: round 1: row at 140, about 8 min left",
    ]


def test_the_bar_is_of_the_time_and_only_moves_where_that_is_known(clock: list[float]) -> None:
    drawn = Drawn()
    display = Display({"training": 1, "speed": 1}, {"speed": 300.0}, screen=Bar(drawn))
    with display.part("training", "a, b"):
        assert drawn.state == {
            "description": "training: a, b",
            "total": None,
            "completed": 0,
            "parts": "0/2",
            "left": "",
        }
        clock[0] += 10
        display.reached(0.0, "a: step 0", "b: step 0")
        assert drawn.state["description"] == "training: a, b\na: step 0\nb: step 0"
        clock[0] += 90
        display.reached(0.9)
    display.detail()
    assert drawn.state == {
        "description": "",
        "total": 1.0,
        "completed": pytest.approx(100 / 400),
        "parts": "1/2",
        "left": "about 5 min left",
    }


def test_what_a_child_writes_never_ends_the_display(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are markup to the terminal library; a plugin that writes `[/usr/lib/x.py]` ended the run."""
    console = pytest.importorskip("rich.console").Console(force_terminal=True)
    with pytest.importorskip("rich.progress").Progress(console=console) as drawn:
        display = Display({"speed": 1}, screen=Bar(drawn))
        with display.part("speed", "rows [/x]"):
            display.detail("see [/usr/lib/foo.py]")
            display.note("[/bold] and so on")
    assert "[/bold] and so on" in capsys.readouterr().out


def test_beside_the_bar_results_still_go_to_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown({"training": 1}) as display, display.part("training", "mine"):
        print("a result")
        display.note("a row is finished")
    written = capsys.readouterr()
    assert written.out == "a result\n"
    assert "a row is finished" in written.err and "training: mine" in written.err


def test_whoever_waits_for_others_says_so_at_once_and_then_once_a_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    wait = Display({}).waiting("another process trains it")
    for _ in range(100):
        wait()
        clock[0] += 1
    assert capsys.readouterr().err.splitlines() == ["another process trains it", "  another process trains it"]


# A run


def test_several_runs_of_one_command_are_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(monkeypatch):
        runs = [
            replace(a_run(tmp_path, plugins="full_var", rounds=rounds), part_seconds={"speed": seconds})
            for rounds, seconds in ((2, 10.0), (1, 40.0))
        ]
        assert foreseen(runs) == (
            {"training": 0, "images and memory": 2, "images and speed": 0, "speed": 3},
            {"speed": 20.0},
        )
        carry_out(runs, tmp_path / "out", resume=False, again="")
    said = capsys.readouterr().err.splitlines()
    begun = [line for line in said if line.startswith("[")]
    assert [line.partition(",")[0] for line in begun] == [f"[{number}/5" for number in range(1, 6)]
    assert [line for line in said if line.startswith("run ")] == [said[0], said[said.index(begun[3]) - 1]]


def test_what_was_trained_before_is_no_part_of_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(monkeypatch):
        run = a_run(tmp_path, plugins="variant@d8", weights=None)
        execution = conduct(run, tmp_path)
        assert parts(run)["training"] == 1
        execution.display = Display({"training": 1, "speed": 2}, {"speed": 5.0})
        execution.done = dict.fromkeys(run.rows)  # type: ignore[arg-type]  # records are not looked into
        execution.train()
        assert execution.display.seconds_left() == 10


# Trainings


def test_a_training_shows_losses_and_images_a_second_and_ends_in_a_line_that_stays(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = Drawn()
    for screen in (Bar(drawn), None):
        display = Display({"training": [4]}, screen=screen)
        with followed(display, "training", "mine", steps=4, batch=32) as told:
            clock[0] += 30
            told(1, {"loss full": 2.5})
            clock[0] += 40
            told(2, {"loss d8": 3.5})
            assert display.seconds_left() == 80
            clock[0] += 80
    at = "step 2 of 4  loss full 2.5  loss d8 3.5  images/s 0.8"
    done = "  mine: 4 steps in 150 s  loss full 2.5  loss d8 3.5  images/s 0.8"
    assert drawn.state["description"] == f"training: mine: {at}"
    assert drawn.state["left"] == "about 80 s left"
    assert drawn.printed == [done]
    assert capsys.readouterr().err.splitlines() == [
        "[1/1, 0 s] training: mine",
        f"  training: mine: {at}, about 80 s left",
        done,
    ]


def test_several_recipes_are_one_whole_and_those_in_the_cache_no_part_of_it(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def weights(row: rows.Row, display: Display) -> RecipeWeights:
        if row.name == "variant@d8":
            return RecipeWeights(files={}, record=None, origin="cache")
        with display.part("training", row.name, size=10):
            clock[0] += 60
        return RecipeWeights(files={}, record=None, origin="here")

    some = [rows.resolve(name, presets.preset("tiny").spec) for name in ("variant@d8", "variant@d4", "variant@d2")]
    found = in_one_display(some, weights, parts=lambda row: {"training": [10]})
    assert [(row.name, done.origin) for row, done in found] == [
        ("variant@d8", "cache"),
        ("variant@d4", "here"),
        ("variant@d2", "here"),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "[1/2, 0 s] training: variant@d4",
        "[2/2, 60 s, about 60 s left] training: variant@d2",
    ]


def test_trainings_side_by_side_are_a_line_each_and_one_share(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = Drawn()
    display = Display({"training": 1}, screen=Bar(drawn))
    together = Trainings(display, ["a", "b", "c"])
    with display.part("training", together.title):
        together.reached("a", Alive(text="step 0 of 9", share=0.0))
        clock[0] += 30
        together.reached("a", Alive(text="step 3 of 9", share=1 / 3))
        together.reached("b", Alive(text="[/b]", share=2 / 3))
        assert drawn.state["description"] == "training: a, b, c\na: step 3 of 9\nb: \\[/b]"
        assert display.seconds_left() == pytest.approx(60)
        together.reached("b", Alive(text="lies", share=float("nan")))
        together.reached("b", Alive(text="lies", share=-7.0))
        together.reached("a", Alive(text="a: 9 steps in 60 s  loss full 2.5", share=40.0))
        assert display.seconds_left() == pytest.approx(30 / (5 / 9) * (4 / 9))
        together.ended("a", Trained(log=None, note=None, files={}, hashes={}))
        together.ended("b", None)
        assert drawn.state["description"] == "training: a, b, c"
        together.ended("c", Trained(log=None, note="those that ship are of other data", files={}, hashes={}))
    assert drawn.printed == ["  a: 9 steps in 60 s  loss full 2.5", "  c: those that ship are of other data"]


@pytest.mark.slow
def test_what_a_run_trains_shows_in_the_runs_own_display(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = prepare(options(plugins="variant@d8,fixed_ratio@p10/d8", train=True, steps=12), name="a")
    execution = conduct(run, tmp_path)
    drawn = Drawn()
    execution.display = Display({"training": 1}, screen=Bar(drawn))
    seen = []
    drawn.update = lambda task, **state: seen.append(state)  # type: ignore[method-assign]  # each state in turn
    execution.train()
    assert set(execution.trained) == {"variant@progressive", "fixed_ratio@p10"}
    for name in execution.trained:
        (line,) = [line for line in drawn.printed if line.startswith(f"  {name}: ")]
        assert re.fullmatch(rf"  {name}: 12 steps in \d+ s  loss .*images/s [\d.e+]+", line)
        assert any(
            f"{name}: tokens" in state["description"] or f"{name}: step" in state["description"] for state in seen
        )
    assert seen[-1]["parts"] == "0/1" and seen[-1]["total"] == 1.0, "the time left is known"
    assert "step" not in capsys.readouterr().err, "children write nothing past the display"
