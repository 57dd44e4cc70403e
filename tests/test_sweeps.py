"""Several values of an option are several runs into one folder, and several tables of one page."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import options, scripted

from varbench.__main__ import main
from varbench.errors import UserError
from varbench.measure.largest import largest_by_plan, misfit, needed
from varbench.plan import cost
from varbench.plan.steps import Plan
from varbench.record import load_records
from varbench.record.option_forms import add_arguments
from varbench.run import fits
from varbench.run.defaults import resolve
from varbench.run.prepare import prepare
from varbench.show.entries import blocks_of

COMMON = ("--plugins", "variant@d8", "--weights", "random", "--rounds", "1", "--budget", "0")


def swept(*words: str, config: Path | None = None) -> list[tuple[str, int]]:
    parser = ArgumentParser()
    add_arguments(parser, sweeps=True)
    found = resolve(Namespace(**vars(parser.parse_args([*COMMON, *words])), config=config))
    return [(one.dtype, one.batch) for one in found]


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    wanted = [(dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 8, 64)]
    assert swept("--batch", "1,8,64", "--dtype", "float32,bfloat16") == wanted
    assert swept("--batch", "8", "--dtype", "float32") == [("float32", 8)]
    assert swept("--batch", "8,8", "--dtype", "float32") == [("float32", 8)], "the same once is enough"
    file = tmp_path / "run.toml"
    file.write_text('batch = [1, 8, 64]\ndtype = ["float32", "bfloat16"]\n')
    assert swept(config=file) == wanted
    assert swept("--batch", "2", config=file) == [("float32", 2), ("bfloat16", 2)], "the command line wins"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch = []", "batch is an empty list"),
        ("batch = [8, 0]", "batch is 0; give 1 or more"),
        ('dtype = ["float32", "float31"]', "Did you mean 'float32'"),
        ("seed = [0, 1]", r"seed is \[0, 1\]; give a whole number"),
    ],
)
def test_a_bad_list_names_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        swept(config=file)


def test_a_bad_value_on_the_command_line_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", *COMMON, "--batch", "1,many"])
    assert "'1,many' is not a whole number, or several by comma" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # who measures nothing takes one value
        main(["plan", "variant@d8", "--batch", "1,8"])


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    with scripted(monkeypatch):
        return main(["run", *COMMON, "--batch", "2,4", "--dtype", "float32", "--out", str(out), *more])


def test_all_runs_share_a_folder_and_each_is_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(out, monkeypatch) == 0
    records = load_records([out]).records
    assert len(records) == 6
    assert sorted(block.conditions["batch"] for block in blocks_of(records)) == [2, 4]
    said = capsys.readouterr()
    assert "run 1 of 2: float32, batch 2" in said.err and "batch 4" in said.out
    assert run(out, monkeypatch) == 2, "nothing is overwritten silently"
    capsys.readouterr()
    assert run(out, monkeypatch, "--resume") == 0
    said = capsys.readouterr()
    assert said.err.count("3 of 3 rows are complete") == 2
    assert "under other settings" not in said.err, "the other table was asked for too"


def test_a_dry_run_tells_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *COMMON, "--batch", "2,4", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2 and "batch 2" in found[0]["title"] and "batch 4" in found[1]["title"]


# What does not fit


def a_run(**given: Any) -> Any:
    return prepare(options(plugins="variant@d2", weights="random", dtype="float32", **given), name="a")


def test_what_does_not_fit_is_said_with_the_largest_batch_that_does() -> None:
    run = a_run(batch=64)
    plan = run.rows["full_var"].plan
    assert plan is not None
    free = 2 * needed(plan, batch=16, dtype="float32")
    largest = largest_by_plan(plan, dtype="float32", free=free).batch
    assert 16 <= largest < 64
    found = fits.misfits(run, free=free)
    assert "full_var" in found and f"the largest batch is {largest}" in found["full_var"]
    lines = list(fits.in_lines(run, found, free=free))
    assert lines[-1].startswith("next: the same command with --batch ")
    least = int(lines[-1].rpartition(" ")[2])
    again = replace(run, options=replace(run.options, batch=least))
    assert fits.misfits(again, free=free) == {}
    assert fits.misfits(run, free=None) == {}
    assert "not even one image fits" in (misfit(plan, batch=1, dtype="float32", free=1000, device="cpu") or "")


def test_a_run_says_so_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("varbench.measure.environment.available_memory", lambda: 1 << 20)
    assert main(["run", *COMMON, "--dry-run"]) == 0
    assert "needs about" in capsys.readouterr().out
    run(tmp_path / "run", monkeypatch)
    assert "warning: full_var needs about" in capsys.readouterr().err


def test_a_plan_says_what_does_not_fit_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["plan", "variant@d2", "--model", "var-d30", "--hardware", "RTX-4090,H200-SXM"]
    assert main([*rows, "--batch", "256"]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "does not fit" in line and "it needs" in line]
    assert line.startswith("variant@d2 does not fit RTX-4090") and "the largest batch is" in line
    assert main([*rows, "--batch", "1"]) == 0
    assert "it needs" not in capsys.readouterr().out


def test_a_plan_is_counted_once_however_many_cards_it_may_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted: list[tuple[str, str, str]] = []

    def work(plan: Plan, *, device: str = "cuda", **given: Any) -> cost.PlanWork:
        counted.append((plan.name, plan.accounting, device))
        return real(plan, device=device, **given)

    real = cost.work
    for module in ("varbench.plan.cost", "varbench.measure.largest"):
        monkeypatch.setattr(f"{module}.work", work)
    cards = ["--hardware", "L20,H100-SXM,cpu-2-cores", "--batch", "8"]
    assert main(["plan", "variant@d2,streaming", "--model", "var-d30", *cards]) == 0
    rows = {name for name, _, _ in counted}
    assert "variant@d2" in rows and len(rows) > 2
    assert "it needs" not in capsys.readouterr().out, "else the largest batch that fits is looked for, and counts"
    assert sorted(counted) == sorted(set(counted)), "each for a kind of device and an accounting"
