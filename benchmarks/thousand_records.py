"""How long `varbench report` and `varbench compare` take over many records: as many as one run has rows, under more seeds.

    python benchmarks/thousand_records.py --count 1000

Records are copied from a committed run, with a little noise. Seconds are of the processor, so that a busy machine says the same.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from varbench.record import Record, load_records, write_record

SOURCE = Path(__file__).parents[1] / "reports" / "tiny" / "trained" / "records"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--records", type=Path, default=SOURCE, help="what is copied")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        old, new = Path(scratch, "old"), Path(scratch, "new")
        for place, noise in ((old, 1), (new, 2)):
            make(place, args.records, args.count, random.Random(noise))
        for words in (["report", "--records", new, "--out", Path(scratch, "page")], ["compare", old, new]):
            print(f"{words[0]} of {args.count:,} records: {seconds_of(words):.2f} s")


def make(place: Path, source: Path, count: int, noise: random.Random) -> None:
    known = load_records([source]).records
    seeds = (replace_seed(record, seed, noise) for seed in itertools.count() for record in known)
    for record in itertools.islice(seeds, count):
        write_record(record, place / f"seed-{record.protocol.seed}")


def replace_seed(record: Record, seed: int, noise: random.Random) -> Record:
    timing = record.timing and replace(
        record.timing,
        columns=tuple(
            replace(column, rounds=tuple(tuple(t * noise.gauss(1, 0.01) for t in calls) for calls in column.rounds))
            for column in record.timing.columns
        ),
    )
    return replace(record, run=f"seed-{seed}", protocol=replace(record.protocol, seed=seed), timing=timing)


def seconds_of(words: list[object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "varbench", *map(str, words)], check=False, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
