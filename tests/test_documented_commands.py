"""Every command that README and the operator's page show, also those that no test can run, is one that the parsers know."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from varbench.__main__ import build_parser, verbs
from varbench.errors import UserError
from varbench.record.option_forms import checked
from varbench.record.options import Options, asked
from varbench.train.training_options import TrainingOptions, configured

ROOT = Path(__file__).parent.parent
TRAININGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "trainings").glob("*.toml"))
PAGES = ("README.md", "docs/operating.md", *TRAININGS)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`(varbench [^`]+)`")
NAMED = re.compile(rf"(?:^|[\s/])varbench (?:{'|'.join(verbs())})\b")
PLACEHOLDERS = {"N": "1"}
"""What stands for a number."""


def shown(page: str) -> str:
    """The page's blocks, or what a training's file says above its keys, with lines that go on joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".toml"):
        text = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#   "))
    else:
        text = "\n".join(block for kind, block in BLOCK.findall(text) if kind not in ("python", "toml"))
    return text.replace("\\\n", " ")


def commands(text: str) -> Iterator[list[str]]:
    """Words of each command of varbench, and of torchrun where that starts it."""
    for line in text.splitlines():
        if not NAMED.search(line):
            continue
        words = [word for word in shlex.split(line.removeprefix("$ "), comments=True) if word != "..."]
        starts = [place for place, word in enumerate(words) if Path(word).name in ("varbench", "torchrun")]
        ends = [place for place, word in enumerate(words) if word == "&&"] + [len(words)]
        while starts:
            end = min(place for place in ends if place > starts[0])
            yield words[starts[0] : end]
            starts = [place for place in starts if place > end]


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The program's, and those of its verbs."""
    parser = build_parser([importlib.import_module(module) for module in verbs().values()])
    (known,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return parser, dict(known.choices)


def parse(words: list[str], *, whole: bool = True) -> argparse.Namespace:
    """Of a command that is not `whole`, as in the middle of a sentence, only what is there has to be known."""
    if words[0] == "torchrun":
        started = get_args_parser().parse_args(words[1:])
        assert started.module and started.training_script == "varbench"
        words = [started.training_script, *started.training_script_args]
    parser, by_verb = parsers()
    for action in () if whole else by_verb[words[1]]._actions:
        action.required = False
    args = parser.parse_args([PLACEHOLDERS.get(word, word) for word in words[1:]])
    if words[1] in ("run", "train"):
        for name, option in asked(TrainingOptions if words[1] == "train" else Options).items():
            if (value := getattr(args, name, None)) is not None:
                checked(replace(option, path=None), value, option.flag)
    return args


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_parses(page: str) -> None:
    text = shown(page)
    found = list(commands(text))
    assert found and len(found) == len(NAMED.findall(text)), "none is overlooked"
    for words in found:
        args = parse(words)
        if getattr(args, "config", None) is not None:
            assert configured(ROOT / args.config)[0]["what"]


@pytest.mark.parametrize("page", ["README.md", "docs/operating.md"])
def test_every_command_in_a_sentence_parses_as_far_as_it_goes(page: str) -> None:
    prose = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = SPAN.findall(prose)
    assert len(found) >= 4
    for span in found:
        words = shlex.split(span)
        if words[1] != "--help":
            parse(words, whole=False)


@pytest.mark.parametrize("page", ["README.md", "docs/operating.md", "docs/results.md", "docs/measuring.md"])
def test_every_option_that_a_sentence_names_is_one(page: str) -> None:
    prose = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    named = {flag for span in re.findall(r"`([^`]+)`", prose) for flag in re.findall(r"(?<!\S)--[a-z-]+", span)}
    known = {flag for parser in parsers()[1].values() for action in parser._actions for flag in action.option_strings}
    others = {"--official": "benchmarks/gpu_round.py", "--shm-size": "docs/operating.md"}  # the second is docker's
    assert named and named - known <= others.keys()
    for flag in named - known:
        assert flag in (ROOT / others[flag]).read_text()


@pytest.mark.parametrize(
    "line",
    [
        "varbench run --plugins variant --executer ray",
        "varbench run --plugins variant --executor slurm",
        "srun torchrun --nproc-per-nodes=8 -m varbench train variant --steps N",
        "torchrun --nproc-per-node=8 -m varbench train variant --piece 8",
        "FOO=1 .venv/bin/varbench report --out x && .venv/bin/varbench plan variant --modell tiny",
    ],
)
def test_a_command_that_nobody_knows_does_not_parse(line: str) -> None:
    found = list(commands(line))
    with pytest.raises((SystemExit, UserError)):
        [parse(words) for words in found]


def test_the_batch_scripts_are_bash() -> None:
    scripts = [block for _, block in BLOCK.findall((ROOT / "docs/operating.md").read_text()) if block.startswith("#!")]
    assert len(scripts) == 2 and all("#SBATCH --nodes=" in script for script in scripts)
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_extras_that_are_named_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in ("README.md", "docs/operating.md"):
        named = re.findall(r"pip install [^\n]*?'[^'\n]*\[(\w+)\]'", (ROOT / page).read_text())
        assert named and set(named) <= set(extras)
