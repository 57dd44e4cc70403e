"""The command line: what it takes, what it answers, how it fails."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
from conftest import CommandLine

from varbench import __main__ as cli
from varbench.base import variables
from varbench.errors import WrongOutputError

FROZEN = Path(__file__).parent / "data" / "command_line.txt"
MIB = 2**20


def test_the_surface_is_frozen() -> None:
    now, before = command_line.surface(), FROZEN.read_text()
    difference = "".join(difflib.unified_diff(before.splitlines(True), now.splitlines(True), "frozen", "now"))
    assert now == before, f"{difference}\nIf this is meant: python tests/command_line.py > {FROZEN}"


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        (["--help"], 150),
        (
            ["list"],
            260,
        ),  # with a module or two of each plugin, one of each theme of hooks, and the options that it shares
        (["plan", "variant@d8", "--model", "var-d30"], None),
        (["run", "--help"], 200),
        (["report", "--help"], 120),
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], most: int | None) -> None:
    """They answer in about 0.2 s. What keeps them there is counted, since a busy machine's clock says nothing."""
    script = (
        "import sys\nbefore = set(sys.modules)\nfrom varbench.__main__ import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "new = set(sys.modules) - before\nheavy = {'torch', 'numpy', 'pandas'} & new\n"
        f"heavy |= {{'varbench.record', 'pluggy'}} & new if {arguments == ['--help']} else set()\n"
        f"sys.exit(f'{{len(new)}} modules, among them {{sorted(heavy)}}' if heavy or len(new) > {most or 10_000} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"imported {done.stderr}"


@pytest.mark.skipif(sys.platform != "linux", reason="variables of the GNU C library")
@pytest.mark.parametrize(
    ("arguments", "given", "again"),
    [
        (["sample", "x"], {}, True),
        (["sample", "x"], {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False),
        (["list"], {}, False),
    ],
)
def test_a_verb_that_computes_begins_with_the_variables_of_our_processes(
    arguments: list[str], given: dict[str, str], again: bool
) -> None:
    script = (
        "import os, sys\nfrom varbench import __main__ as cli\n"
        "os.execv = lambda path, words: sys.exit(repr((words[1:], os.environ['GLIBC_TUNABLES'])))\n"
        "cli.main = lambda: sys.exit('once')\ncli.entry()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env={**environment, **given}, capture_output=True, text=True)
    expected = repr((command[1:], variables.OF_PROCESSES["GLIBC_TUNABLES"])) if again else "once"
    assert done.stderr.strip() == expected


def test_help_teaches(varbench: CommandLine) -> None:
    overview = varbench("--help")
    assert all(verb in overview.stdout for verb in cli.verbs())
    assert "examples:" in overview.stdout
    assert "examples:" in varbench("plan", "--help").stdout
    assert varbench().stdout == overview.stdout
    assert varbench("--version").stdout.startswith("varbench 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "no command 'lst'. Did you mean 'list'?"),
        (["plan"], "the following arguments are required: METHOD"),
        (["plan", "variant@d8", "--modle", "tiny"], "unrecognized arguments: --modle"),
        (["plan", "varint@d8"], "no plugin 'varint'. Did you mean 'variant'?"),
        (["plan", "variant@d16"], "d16 is out of range: tiny has 16 layers, so give d1 to d15, or full"),
        (["plan", "variant@d8", "--model", "vard30"], "no model preset 'vard30'. Did you mean 'var-d30'?"),
        (["plan", "variant@d8", "--hardware", "H100"], "no hardware 'H100'. Did you mean 'H100-SXM'?"),
        (["plan", "variant@d8", "--hardware", "mine.toml"], "mine.toml: cannot be read as hardware"),
        (["plan", "variant@d8", "--batch", "0"], "--batch is 0; give 1 or more"),
        (["plan", "variant@d8", "--batch", "8.5"], "argument --batch: '8.5' is not a whole number"),
        (["train", "variant", "--rate", "fast"], "argument --rate: 'fast' is not a number"),
        (["train", "tokenizer", "--steps", "0"], "--steps is 0; give 1 or more"),
        (["train", "features", "--steps", "0"], "--steps is 0; give 1 or more"),
        (["train", "variant", "--batch", "0"], "--batch is 0; give 1 or more"),
        (["train", "variant", "--rate", "-1"], "--rate is -1; give more than 0"),
        (["train", "base", "--rate", "0"], "--rate is 0; give more than 0"),
        (["train", "base", "--rate", "3"], "--rate is 3; give 1 or less"),
        (["train", "base", "--rate", "nan"], "--rate is nan; give a finite number"),
        (["train", "judge", "--rate", "0.1"], "--rate has no effect on the training of judge; leave it out"),
        (["train", "tokenizer", "--mean-decay", "0.9"], "--mean-decay has no effect on the training of tokenizer"),
        (["train", "base", "--companion", f"refiner={__file__}"], "--companion has no effect on the training of base"),
        (["train", "variant", "--companion", f"refiner={__file__}"], "no other model runs beside the main one"),
        (["train", "code", "--companion", f"second={__file__}"], "only refiner runs beside the main one of code"),
        (["train", "--rate", "0.1"], "say what is trained: one of tokenizer, base"),
        (["plan", "variant@d8", "--dtype", "bf16"], "--dtype 'bf16' is unknown. Did you mean 'bfloat16'?"),
        (["list", "--disable", "varint"], "cannot disable 'varint': no such plugin. Did you mean 'variant'?"),
        (
            ["sample", "--model", "var-d30"],
            "var-d30 ships no weights; give --weights FILE with --vae FILE, or --weights random",
        ),
        (["sample", "--weights", "var.pth"], "--weights var.pth: no such file; give a path, or `random`"),
        (["sample", "--weights", __file__], "give the tokenizer's too: --vae FILE"),
        (["sample", "--vae", __file__], "--vae belongs to a checkpoint; give it with --weights FILE"),
        (["sample", "--weights", "random", "--labels", "3,10.5"], "--labels is '3,10.5'; give class numbers"),
        (["sample", "--weights", "random", "--labels", "11"], "label 11 is not a class of tiny: classes are 0 to 9"),
        (["env", "--calibrate", "--device", "gpu"], "--device is 'gpu'; give cpu, cuda or cuda:N"),
        (["sample", "--out", "grid.txt"], "images are written as PNG; give a name that ends with .png"),
        (["sample", "--seed", "-1"], "--seed is -1; give 0 or more"),
        (["sample", "--weights", "random", "--top-p", "1.5"], "--top-p is 1.5; give 1 or less"),
        (
            ["sample", "--weights", "random", "--dtype", "half"],
            "--dtype 'half' is unknown. Known: bfloat16, float16, float32",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        sys.exit(cli.main(arguments))
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "arguments",
    [["env", "--calibrate"], ["train", "base"], ["tokens", "--out", "t"], ["sample"], ["calibrate", "scale_window@w1"]],
)
@pytest.mark.parametrize(("device", "seen"), [("cuda", 0), ("cuda:2", 2)])
def test_a_gpu_that_torch_does_not_see_is_a_mistake_in_every_command(
    arguments: list[str],
    device: str,
    seen: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(seen))
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    assert cli.main([*arguments, "--device", device]) == 2
    assert f"device '{device}' was asked for, but torch" in capsys.readouterr().err


def test_the_traceback_is_shown_when_asked(varbench: CommandLine) -> None:
    shown = varbench("plan", "varint@d8", "--traceback")
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("varbench plan: error: no plugin 'varint'")


def test_nothing_selected_is_exit_code_4(varbench: CommandLine) -> None:
    done = varbench("plan", ",")
    assert done.returncode == 4
    assert "names no row" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            FileNotFoundError(2, "No such file or directory", "a.npz"),
            2,
            "error: [Errno 2] No such file or directory: 'a.npz'",
        ),
        (WrongOutputError("2 images hold NaN"), 2, "error: 2 images hold NaN"),
        (ZeroDivisionError("oh"), 70, "fault: ZeroDivisionError: oh. Run it again with --traceback"),
    ],
)
def test_how_commands_end(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("varbench.commands.list.run", fail)
    assert cli.main(["list"]) == code
    stderr = capsys.readouterr().err
    assert said in stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m varbench plan variant,fixed_ratio,code --json | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_list_names_plugins_presets_and_hardware(varbench: CommandLine) -> None:
    listed = json.loads(varbench("list", "--json", "--model", "var-d30").stdout)
    plugins = {plugin["name"]: plugin for plugin in listed["plugins"]}
    assert {"full_var", "variant", "fixed_ratio", "code"} <= set(plugins)
    assert plugins["variant"]["points"] == ["full", "d16", "d8", "d4", "d2"]
    assert plugins["variant"]["distribution"] == "varbench"
    assert listed["presets"][0]["name"] == "tiny"
    assert {"H100-SXM", "H200-SXM", "L20", "L40S", "RTX-4090"} <= {device["name"] for device in listed["hardware"]}
    text = varbench("list").stdout
    assert "full* d8* d4 d2*" in text
    assert varbench("list", "presets").stdout.count("\n") == 8


def test_plan_gives_the_published_models_figures(varbench: CommandLine) -> None:
    done = varbench("plan", "variant@d8,variant@d2", "--model", "var-d30", "--json")
    rows = {entry["row"]: entry for entry in json.loads(done.stdout)}
    ends = {name: row["work"]["state_end"] / MIB for name, row in rows.items()}
    assert ends == {
        "full_var": 11_925, "full_var:accounting=upstream": 28_687.5, "variant@d8": 3_180, "variant@d2": 795
    }  # fmt: skip
    assert rows["variant@d8"]["published"][0]["figures"]["fid"] == 2.12


def test_plan_puts_published_figures_beside_and_names_what_does_not_fit(varbench: CommandLine) -> None:
    text = varbench("plan", "full_var,variant@d16,variant@d2,variant@d2:bridge=7", "--model", "var-d30").stdout
    assert "cache 28,677 MB fits ours; nearest upstream, 28,687.5 MiB" in text
    assert "cache 16,092 MB does not fit ours; nearest upstream, 17,091.6 MiB (+6.2%)" in text
    assert "speedup 3.5x does not fit ours; 5.19x less work" in text
    assert "speedup 3.5x fits ours; 3.60x less work" in text


def test_plan_of_all_is_every_method(varbench: CommandLine) -> None:
    done = varbench("plan", "all", "--model", "var-d30", "--hardware", "L20,H100-SXM")
    assert done.returncode == 0, done.stderr
    stated = done.stdout.partition("rows that replace the loop, as they state it")[2]
    assert "dit@s50" in stated and "llamagen@XXL384" in stated
    table = done.stdout.partition("published figures beside")[0]
    names = {line.partition(" ")[0].partition("@")[0] for line in table.splitlines()[3:] if line}
    assert {"full_var", "fixed_ratio", "code", "smaller", "variant", "fastvar", "guidance", "scalekv"} <= names
    assert "s on L20" in table and "s on H100-SXM" in table


def test_plan_shows_seconds_of_a_single_image_to_two_digits(varbench: CommandLine) -> None:
    text = varbench("plan", "full_var,variant@d8", "--batch", "1").stdout
    seconds = [line.split()[-2] for line in text.splitlines() if line.startswith(("full_var ", "variant@d8 "))]
    assert len(seconds) == 2
    assert all(len(found.replace(".", "").lstrip("0")) >= 2 for found in seconds), seconds


def test_plan_of_one_row_shows_its_steps(varbench: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nbandwidth_gbs = 1000\nmemory_gb = 10\n[tflops]\nbfloat16 = 100\n[efficiency]\nbfloat16 = 0.5\n'
    )
    text = varbench("plan", "code@n4", "--hardware", "L20,mine.toml", "--accounting", "upstream").stdout
    assert "1x1+2x2+3x3+4x4+6x6 -> scale 5  refiner" in text
    assert "ms on mine" in text
    assert "code@n4:accounting=upstream" in text
    assert "a bound on L20, where no efficiency was measured" in text


def test_sample_draws_a_line_of_images_for_each_row(varbench: CommandLine, tmp_path: Path) -> None:
    from PIL import Image

    arguments = (
        "sample",
        "full_var,variant@d8,variant@full",
        "--weights",
        "random",
        "--labels",
        "1,2,3",
        "--out",
        "grid.png",
    )
    done = varbench(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "grid.png\n"
    sheet = Image.open(tmp_path / "grid.png")
    assert sheet.size == (3 * 33, 3 * 33)
    lines = [sheet.crop((0, 33 * index, 99, 33 * index + 33)).tobytes() for index in range(3)]
    assert lines[0] == lines[2], "same classes, same noise, same work"
    assert varbench(*arguments[:-1], "other.png", "--seed", "1").returncode == 0
    assert Image.open(tmp_path / "other.png").tobytes() != sheet.tobytes()
    again = varbench(*arguments)
    assert again.returncode == 2
    assert "grid.png is there already" in again.stderr


def test_env_says_what_a_result_depends_on(varbench: CommandLine, tmp_path: Path) -> None:
    facts = json.loads(varbench("env", "--json", XDG_CACHE_HOME=str(tmp_path / "none")).stdout)
    assert {"python", "torch", "cpu", "device", "plugins", "kernels in C"} <= set(facts)
    assert facts["cache"] == f"{tmp_path}/none/varbench (not there yet)"
