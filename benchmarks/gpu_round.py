"""The whole round on a machine with a GPU, in under 20 minutes: all that only a GPU shows, as records, a page and a README.

    python benchmarks/gpu_round.py                    into reports/h100, or whatever the card is called
    python benchmarks/gpu_round.py --minutes 9        in pieces: the same again goes on with what is not done
    python benchmarks/gpu_round.py --device cpu --models tiny --batch 2 --plugins variant@d8 --steps 6 --images 20

Its parts, in the order of their worth. Each may take some minutes of what is left, and what it leaves the others have:

    tests     those that are marked gpu: agreement with the CPU, lossless and official accounting bit for bit, kernels, graphs
    engine    of the first model, operator by operator and as graphs, beside what was foreseen (gpu_engine.py)
    official  of each model, beside the official code in one process (beside_official.py), where --official names a checkout
    methods   of each model, VARiant's points and a setting of every other method, at --batch and at 1, random weights
    memory    of the first model and a point of VARiant's: peak memory, energy, the largest batch
    trained   `tiny` trained here, and the quality of its weights on this device and on the CPU

A part that fails or runs out of time costs itself alone, and the README names it. What is done is not done again, but
at another commit or with other options. The exit code is 0 once all is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import join, split

from round_readme import Outcome, write_readme

from varbench import rows
from varbench.base.hashing import json_digest
from varbench.errors import UserError
from varbench.plan import presets
from varbench.rows.manager import manager

ROOT = Path(__file__).resolve().parents[1]
VARBENCH = [sys.executable, "-P", "-m", "varbench"]

MOST = {"tests": 3, "engine": 2.5, "official": 2.5, "methods": 6, "memory": 4, "trained": 5}
"""Minutes that a part of this kind may take, of a round of 20; of a longer one as many more."""
PAGE = 0.05
"""Share that is left for the page."""
GRACE = 30.0
"""Seconds in which a part whose time is over may save what it has."""
FIRST = ("variant", "code", "guidance", "smaller", "fastvar", "scalekv")
"""Methods that are measured first, should the time be short."""

DONE, FAILED, LATE, UNREACHED = "done", "failed", "out of time", "not reached"
SOME_ROWS_FAILED = 3
"""Exit code of `varbench run`; the tables show which."""


@dataclass(frozen=True)
class Part:
    name: str
    commands: Mapping[str, list[str]]
    """By the name of its log, one after the other."""

    @property
    def kind(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def seconds(self) -> float:
        return 60 * MOST[self.kind]

    @property
    def digest(self) -> str:
        return json_digest(list(self.commands.values()))[:12]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=20, metavar="N", help="in all; default: 20")
    add(
        "--models", default="var-d30,var-d16,var-d24,var-d20", metavar="PRESETS",
        help="by comma, in the order of their worth; default: var-d30,var-d16,var-d24,var-d20",
    )  # fmt: skip
    add("--batch", type=int, default=64, metavar="N", help="images a call, beside calls of one image; default: 64")
    add("--plugins", metavar="ROWS", help="rows of the parts methods and memory; default: every method")
    add("--steps", type=int, default=4000, metavar="N", help="that train tiny; default: 4000, an hour's on two cores")
    add("--images", type=int, default=2000, metavar="N", help="whose quality is measured; default: 2000")
    add("--parts", metavar="KINDS", help=f"only these of {', '.join(MOST)}, by comma; default: all")
    add("--official", type=Path, metavar="DIR", help="a checkout of FoundationVision/VAR, to be timed beside ours")
    add("--device", metavar="DEVICE", help="cuda or cpu; default: a GPU where torch sees one")
    add("--out", type=Path, metavar="DIR", help="default: reports/ and the card's name")
    args = parser.parse_args(arguments)
    began, facts = time.monotonic(), _facts()
    args.device = args.device or ("cpu" if facts["device"].startswith("cpu") else "cuda")
    card = "cpu" if args.device == "cpu" else facts["device"]
    args.out = (args.out or ROOT / "reports" / _short(card)).resolve()
    try:
        kinds = MOST if args.parts is None else args.parts.split(",")
        wanted = [part for part in parts(args) if part.kind in kinds]
    except UserError as error:
        parser.error(str(error))
    commit = _commit()
    about = {"card": card, **{name: facts[name] for name in ("GPU", "cpu", "torch", "python")}, "commit": commit}
    again = join(["python", "benchmarks/gpu_round.py", *(sys.argv[1:] if arguments is None else arguments)])
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    kept = args.out / "round.json"
    outcomes: dict[str, Outcome] = json.loads(kept.read_text()) if kept.exists() else {}

    def note(name: str, outcome: Outcome, **more: str) -> None:
        outcomes[name] = {**outcome, "commit": commit, **more}
        print(f"{name}: {outcome['status']}, {outcome['seconds']:.0f} s", outcome["said"], flush=True)
        kept.write_text(json.dumps(outcomes, indent=1))
        write_readme(args.out, about, outcomes, again)

    whole = 60 * args.minutes
    for part in wanted:
        before = outcomes.get(part.name, {"status": UNREACHED})
        done, same = before["status"] == DONE, {"commit": commit, "asked": part.digest}
        if done and before.items() >= same.items():
            continue
        left = began + whole * (1 - PAGE) - time.monotonic()
        if left > 0:
            limit = min(left, part.seconds * max(1, args.minutes / 20))
            note(part.name, carry_out(part.commands, limit, args.out / "logs"), asked=part.digest)
        elif not done:  # what is done stays, with its commit
            note(part.name, {"status": UNREACHED, "seconds": 0.0, "said": ""})
    note("page", page(args.out, began + whole - time.monotonic()))
    return 0 if all(outcomes[name]["status"] == DONE for name in (*(part.name for part in wanted), "page")) else 1


def parts(args: argparse.Namespace) -> Iterator[Part]:
    first, *others = args.models.split(",")
    records, places = args.out / "records", (args.device, "cpu")

    def run_into(folder: str, device: str, *options: str) -> list[str]:
        """Rows that are complete are not measured again."""
        return [*VARBENCH, "run", "--out", str(records / folder), "--resume", "--device", device, *options]

    def random(model: str, plugins: str) -> list[str]:
        return [*split(f"--model {model} --weights random --batch {args.batch} --plugins"), plugins]

    def methods(model: str) -> Part:
        plugins = args.plugins or ",".join(every_method(model, outsiders=model == first))
        return Part(f"methods {model}", {model: run_into(model, args.device, *random(model, plugins), "--quick")})

    def beside(model: str) -> list[str]:
        return split(f"--model {model} --batch {args.batch},1 --device {args.device}")

    def official(model: str) -> Iterator[Part]:
        if args.official is not None:
            name = "official" if model == first else f"official {model}"
            script = ["benchmarks/beside_official.py", str(args.official.resolve())]
            yield Part(name, {name.replace(" ", "-"): [sys.executable, *script, *beside(model)]})

    marked = split("-m pytest -m gpu tests/test_gpu.py tests/test_llamagen.py -v -p no:cacheprovider")
    yield Part("tests", {"tests": [sys.executable, *marked]})
    yield Part("engine", {"engine": [sys.executable, "benchmarks/gpu_engine.py", *beside(first)]})
    yield from official(first)
    yield methods(first)
    point = args.plugins or rows.expand("variant", presets.preset(first).spec)[1].name
    once = [*random(first, point), *split("--rounds 1 --budget 0")]
    yield Part("memory", {"memory": run_into(f"{first}-memory", args.device, *once)})
    scored = split("--train --quick --budget 0 --plugins variant@d8 --dtype bfloat16")
    scored += split(f"--steps {args.steps} --images {args.images}")
    sides = [str(records / f"trained-{place}") for place in places]
    yield Part(
        "trained",
        {
            "training": [*VARBENCH, *split(f"train variant --device {args.device} --steps {args.steps}")],
            **{f"quality-{place}": run_into(f"trained-{place}", place, *scored) for place in places},
            "quality": [*VARBENCH, "compare", *sides, "--fail-on", "fid:0"],
        },
    )
    for model in others:
        yield methods(model)
        yield from official(model)


def every_method(model: str, *, outsiders: bool) -> list[str]:
    """VARiant's usual points, and of every other method the one in the middle; with `outsiders` those too that run no VAR."""
    spec, chosen = presets.preset(model).spec, []
    for name in (*FIRST, *(name for name in manager().names() if name not in FIRST)):
        made = rows.attempt(name, spec).rows
        if outsiders or not made or made[0].policies.generator is None:
            some = made if name == FIRST[0] else made[len(made) // 2 :][:1]
            chosen += [row.name for row in some] or [name]  # whose record says why there are none
    return chosen


def carry_out(commands: Mapping[str, list[str]], limit: float, logs: Path) -> Outcome:
    """How the commands of a part came out, of which the first that fails is the last."""
    began, status, said = time.monotonic(), DONE, ""
    for name, command in commands.items():
        code, last = run(command, limit - (time.monotonic() - began), logs / f"{name}.txt")
        if code == SOME_ROWS_FAILED and command[: len(VARBENCH) + 1] == [*VARBENCH, "run"]:
            said = "some rows failed"
        elif code != 0:
            status, said = (LATE, f"in {name}") if code is None else (FAILED, f"{name}: {last}")
            break
    return {"status": status, "seconds": time.monotonic() - began, "said": said}


def run(command: list[str], limit: float, log: Path) -> tuple[int | None, str]:
    """The exit code, None of one whose time was over; and the last line that it said."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file, start_new_session=True)
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(max(0.0, limit))
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    if process.poll() is None:
                        os.killpg(process.pid, number)
                        process.wait(GRACE)
    return code, "".join(log.read_text(errors="replace").strip().splitlines()[-1:])


def page(out: Path, limit: float) -> Outcome:
    """Of all records. It lies beside the README, and the records beside it are those of the runs."""
    made = out / ".page"
    command = [*VARBENCH, "report", "--records", str(out / "records"), "--out", str(made)]
    outcome = carry_out({"page": command}, max(limit, GRACE), out / "logs")
    for index in made.glob("*/index.html"):
        shutil.rmtree(index.parent / "records")
        shutil.copytree(index.parent, out, dirs_exist_ok=True)
    shutil.rmtree(made, ignore_errors=True)
    return outcome


def _facts() -> dict[str, str]:
    """From a process of its own: this one must not stand on the GPU beside what is timed."""
    found = subprocess.run([*VARBENCH, "env", "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    facts: dict[str, str] = json.loads(found.stdout)
    return facts


def _short(card: str) -> str:
    """`h100` of `NVIDIA H100 80GB HBM3`."""
    named = re.search(r"\b[A-Za-z]*\d+[A-Za-z]*\b", card)
    return (named[0] if named else card).lower()


def _commit() -> str:
    """What a round writes into `reports` is no change of what it measures. Of a copy without its repository, COMMIT says it."""
    changed = " and changes" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!reports") else ""
    copied = os.environ.get("COMMIT", "unknown")
    return f"{_git('rev-parse', '--short=12', 'HEAD') or copied}{changed}"


def _git(*words: str) -> str:
    """Nothing where there is no git, or no repository."""
    with contextlib.suppress(OSError):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return ""


if __name__ == "__main__":
    sys.exit(main())
