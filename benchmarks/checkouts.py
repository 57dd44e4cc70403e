"""Asks a benchmark of this checkout, and of another one where `--against` names it: processes of both take turns."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE, BEFORE = "here", "before"
Answer = dict[str, Any]
Answers = dict[str, list[Answer]]
"""What each round's process found, by checkout; `BEFORE` is there only where one was named."""


def answers(file: str, measure: Callable[[], Answer], *, doc: str | None, variables: Mapping[str, str]) -> Answers:
    """The rounds' answers. In the processes started for them it prints what `measure` finds, and ends."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure-here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_here:
        import varbench

        print(json.dumps({"package": varbench.__file__, **measure()}))
        sys.exit()
    checkouts = {HERE: Path(file).resolve().parent.parent} | ({BEFORE: args.against.resolve()} if args.against else {})
    found: Answers = {name: [] for name in checkouts}
    for number in range(args.rounds):
        for name, checkout in list(checkouts.items())[:: 1 if number % 2 else -1]:
            found[name].append(_in_checkout(checkout, file, variables))
    return found


def table(found: Answers, parts: Mapping[str, Callable[[Answer], list[float]]], **further: Mapping[str, str]) -> None:
    """Medians of processor seconds, a line a part; `further` are columns that a benchmark has made itself."""
    heads = ["part", "processor ms", *further] + (["before", "before / now"] if BEFORE in found else [])
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for part, seconds in parts.items():
        cost = {name: median(rounds, seconds) for name, rounds in found.items()}
        cells = [part, f"{1e3 * cost[HERE]:.0f}", *(column[part] for column in further.values())]
        if BEFORE in found:
            cells += [f"{1e3 * cost[BEFORE]:.0f}", f"{cost[BEFORE] / cost[HERE]:.2f}"]
        print("| " + " | ".join(cells) + " |")


def median(rounds: list[Answer], seconds: Callable[[Answer], list[float]]) -> float:
    return statistics.median(one for answer in rounds for one in seconds(answer))


def _in_checkout(checkout: Path, file: str, variables: Mapping[str, str]) -> Answer:
    environment = {**os.environ, **variables, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, file, "--measure-here"], env=environment, cwd=checkout, stdout=subprocess.PIPE, check=True
    )
    answer: Answer = json.loads(done.stdout)
    assert Path(answer["package"]).is_relative_to(checkout), (answer["package"], checkout)
    return answer
