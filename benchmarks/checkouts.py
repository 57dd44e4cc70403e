"""Asks a benchmark of this checkout, and of another one where `--against` names it. A process of each lives all the while, and they
take turns: what is compared are neighbours in time, since a shared machine is faster in one minute than in the next."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE, BEFORE = "here", "before"
Answer = dict[str, Any]
Answers = dict[str, list[Answer]]
"""What each turn found, by checkout; `BEFORE` is there only where one was named."""
Turn = Callable[[Answer], None]
"""Is given what a turn found, and comes back when it is this process's turn again."""
Seconds = Callable[[Answer], float | None]
"""Of a part of an answer; None where it is of another."""


def answers(
    file: str,
    measure: Callable[[Turn], None],
    *,
    doc: str | None,
    turns: int,
    variables: Mapping[str, str],
    parts: int = 1,
) -> Answers:
    """The answers of so many turns of each of `parts`, which come round; a first of each warms up. In the processes started for them it
    measures, and ends."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--turns", type=int, default=turns, help=f"of each part, 2 or more; default: {turns}")
    parser.add_argument("--threads", default="1", metavar="N", help="of each process; default: 1")
    parser.add_argument("--measure-here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turns < 2:
        parser.error(f"--turns is {args.turns}; give 2 or more")
    if args.measure_here:
        measure(_told)
        sys.exit()
    checkouts = {HERE: Path(file).resolve().parent.parent} | ({BEFORE: args.against.resolve()} if args.against else {})
    found: Answers = {name: [] for name in checkouts}
    variables = {**os.environ, **variables, "OMP_NUM_THREADS": args.threads}
    with ExitStack() as until_the_end:
        asked = {
            name: _Asked(checkout, until_the_end.enter_context(_started(checkout, file, variables)))
            for name, checkout in checkouts.items()
        }
        for process in asked.values():
            process.answer()
        for number in range(1, (args.turns + 1) * parts):
            for name, process in list(asked.items())[:: 1 if number % 2 else -1]:
                process.goes_on()
                found[name].append(process.answer())
    return {name: some[parts - 1 :] for name, some in found.items()}


def table(found: Answers, parts: Mapping[str, Seconds], *, of: str = "processor", **further: Mapping[str, str]) -> None:
    """Medians, a line a part, and those of the ratios of neighbours, with where the middle half of these lies; `further` are columns
    that a benchmark has made itself."""
    heads = ["part", f"{of} ms", *further] + (["before", "before / now", "half of them"] if BEFORE in found else [])
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for part, seconds in parts.items():
        cells = [part, f"{1e3 * median(found[HERE], seconds):.0f}", *(column[part] for column in further.values())]
        if BEFORE in found:
            pairs = zip(_of(found[BEFORE], seconds), _of(found[HERE], seconds), strict=True)
            low, middle, high = statistics.quantiles([before / now for before, now in pairs], method="inclusive")
            before = f"{1e3 * median(found[BEFORE], seconds):.0f}"
            cells += [before, f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
        print("| " + " | ".join(cells) + " |")


def median(some: list[Answer], seconds: Seconds) -> float:
    return statistics.median(_of(some, seconds))


def _of(some: list[Answer], seconds: Seconds) -> list[float]:
    return [one for answer in some if (one := seconds(answer)) is not None]


def _started(checkout: Path, file: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """It ends by itself once nobody asks any more, and takes its temporary files along."""
    return subprocess.Popen(
        [sys.executable, file, "--measure-here"], env={**variables, "PYTHONPATH": str(checkout)}, cwd=checkout,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """The process of a checkout."""

    checkout: Path
    process: subprocess.Popen[str]

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says more
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def answer(self) -> Answer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.checkout} ended, exit code {self.process.wait()}")
        answer: Answer = json.loads(line)
        assert Path(answer["package"]).is_relative_to(self.checkout), (answer["package"], self.checkout)
        return answer


def _told(answer: Answer) -> None:
    import varbench

    print(json.dumps({"package": varbench.__file__, **answer}), flush=True)
    if not sys.stdin.readline():
        sys.exit()
