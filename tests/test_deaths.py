"""A plugin that ends the process it is asked in costs its own rows, wherever one process asks many plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import CommandLine
from scripted import a_run, conduct, options, scripted
from test_run import child

from varbench.plan import presets
from varbench.record import Status, load_records
from varbench.run import children
from varbench.run.children import DiedError
from varbench.run.messages import Job, Resolved

OTHERS = (
    "not_importable,misspelt,wrong_parameters,leaves,raises,faulty,settings_dict,nothing,twin,dit,llamagen,distilled,dmoe,actvar,"
    "fastvar,hack,h2o,snapkv,streaming,scalekv,skipvar,quant,quant_cache,guidance,smaller,code,fixed_ratio"
)
"""Plugins that the tests do without, to be asked alone too."""
PLAIN = "variant@untrained/d8"


def dry_run(
    varbench: CommandLine, strangers: Path, plugins: str, *more: str, deadly: str
) -> tuple[dict[str, str], str]:
    """What is said of each row, and the warnings."""
    asked = ("run", "--plugins", plugins, "--weights", "random", "--dry-run", *more)
    planned = varbench(*asked, path=strangers, DEADLY=deadly, VARBENCH_DISABLE=OTHERS)
    assert planned.returncode == 0, planned.stderr
    return {line.split()[0]: line for line in planned.stdout.splitlines() if line.strip()}, planned.stderr


@pytest.mark.parametrize(
    ("deadly", "words"), [("import", "exit code 3"), pytest.param("policy", "SIGSEGV", marks=pytest.mark.slow)]
)
def test_rows_of_a_plugin_that_kills_who_asks_it_fail_alone(
    deadly: str, words: str, strangers: Path, varbench: CommandLine
) -> None:
    lines, warnings = dry_run(varbench, strangers, f"deadly,{PLAIN}+deadly,{PLAIN},every_other", deadly=deadly)
    for name in ("deadly", f"{PLAIN}+deadly"):
        assert "plugin 'deadly' (strangers-deadly, deadly) is left out: asked alone, the child" in lines[name]
        assert words in lines[name] and f"; deadly: {deadly}" in lines[name]
    assert "ms" in lines[PLAIN] and "ms" in lines["every_other@plain"]
    assert "warning: plugin 'deadly'" in warnings


def test_a_row_of_two_plugins_fails_where_asking_each_alone_kills_nobody(
    strangers: Path, varbench: CommandLine
) -> None:
    lines, _ = dry_run(varbench, strangers, f"{PLAIN}+deadly,{PLAIN}", deadly="policy")
    assert "SIGSEGV" in lines[f"{PLAIN}+deadly"]
    assert "ms" in lines[PLAIN]


@pytest.mark.parametrize(
    ("deadly", "dead"),
    [
        ("count 9", {"deadly:count=9"}),
        pytest.param("policy", {"deadly:count=4", "deadly:count=9", f"deadly:count=4+{PLAIN}"}, marks=pytest.mark.slow),
    ],
)
def test_rows_that_only_a_study_asks_for_fail_alone(
    deadly: str, dead: set[str], strangers: Path, varbench: CommandLine
) -> None:
    lines, _ = dry_run(varbench, strangers, PLAIN, "--study", "how_many", "--study", "where_to_begin", deadly=deadly)
    rows = {name: line for name, line in lines.items() if name.startswith(("deadly:", "every_other@", PLAIN))}
    assert len(rows) == 6
    assert {name for name, line in rows.items() if "asked alone, the child was ended by SIGSEGV" in line} == dead
    assert all("ms" in line for name, line in rows.items() if name not in dead)


def test_a_plugin_that_kills_who_loads_it_costs_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that it shares; and the others are in one process again, once that is known."""
    with scripted(monkeypatch, never_loads="scale_window") as script:
        rows = (
            "variant@untrained/d8",
            "variant@untrained/d2",
            "scale_window@w1",
            "scale_window@w1+fastvar@skip1",
            "fastvar@skip1",
        )
        execution = conduct(a_run(tmp_path, plugins=",".join(rows), rounds=3), tmp_path)
        execution.everything()
    found = {record.row.row: record for record in execution.save_all()}
    assert {name for name, record in found.items() if record.status is not Status.COMPLETE} == set(rows[2:4])
    for name in rows[2:4]:
        assert (found[name].status, found[name].reason, found[name].exit_code) == (
            Status.CRASHED,
            "while it loads",
            -11,
        )
    assert all(record.exit_code is None for name, record in found.items() if name not in rows[2:4])
    together = [set(names) for _, names in script.started if len(names) > 1]
    assert together[-1] == found.keys() - set(rows[2:4])


@pytest.mark.slow
def test_a_process_that_dies_while_it_loads_a_plugin_is_started_again_without_it(
    strangers: Path, varbench: CommandLine, tmp_path: Path
) -> None:
    asked = (
        "--weights",
        "random",
        "--quick",
        "--batch",
        "1",
        "--dtype",
        "float32",
        "--count",
        "1",
        "--budget",
        "0",
        "--out",
        "run",
    )
    ran = varbench("run", "--plugins", f"deadly,{PLAIN}", *asked, path=strangers, DEADLY="load")
    assert ran.returncode == 3, ran.stderr
    found = {record.row.row: record for record in load_records([tmp_path / "run"]).records}
    assert {name for name, record in found.items() if record.status is not Status.COMPLETE} == {"deadly"}
    assert "SIGSEGV" in (found["deadly"].reason or "") and "deadly: load" in (found["deadly"].stderr_tail or "")


def test_a_calibration_that_kills_its_process_fails_alone(strangers: Path, varbench: CommandLine) -> None:
    lines, _ = dry_run(varbench, strangers, "deadly,scale_window@w1", "--calibrate", deadly="calibrate")
    assert "its calibration failed: the child was ended by SIGSEGV" in lines["deadly"]
    (found,) = [name for name in lines if name.startswith("scale_window@w1:demanding=")]
    assert "ms" in lines[found]


def test_a_child_that_hangs_has_died_too_and_one_that_says_why_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(code: str) -> Any:
        monkeypatch.setattr(children, "start", lambda job, **given: child(code, tmp_path, timeout=1.0))
        asked = Job(task="resolving", options=options(plugins="full_var"), model=presets.preset("tiny").spec)
        with pytest.raises(children.UserError) as ended:
            children.answer_of(asked, Resolved)
        return ended.value

    silent = ends("import time; time.sleep(60)")
    assert isinstance(silent, DiedError) and silent.failure.status is Status.TIMEOUT
    own = "Failure(status=Status.FAILED, reason='a mistake', traceback='of its own')"
    assert (
        type(ends(f"from varbench.record.failure import Failure; say(Failed(failure={own}, last=True))"))
        is not DiedError
    )
