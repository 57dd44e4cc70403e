"""Every known cheat, run as anybody would run it: `varbench run` without the conformance kit finds each one out.

What is not found out is named in docs/results.md under "What is not caught".
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cheating
import pytest

from varbench.record import Record, Status, Verdict, load_records

CAUGHT = {
    "swapped": "not what its tokens decode to",
    "equal": "all tokens equal the full model's",
    "channel": "throughput: its process states",
    "latency": "latency: its process states",
    "own_judge": "the same call gave other tokens",
    "in_ctypes": "bytes live after step",
    "in_images": "bytes live after step",
    "in_sqlite": "bytes live after step",
    "frozen": "bytes live after step",
    "given_back": "given back by the next",
    "served": "nearer to a reference image",
    "repeating": "repeat another one's pixels",
    "other_order": "classes stood in another order",
    "small_words": "were counted",
    "slow_clock": "as it was seen from outside",
}
"""Cheats that make their own row invalid, and words of the reason."""

CAUGHT_IN_ROUNDS = {
    "by_purpose": "do not look like those that were scored",
    "network_time": "the whole call only",
}

BY_A_CLOCK = ("channel", "latency", "slow_clock")
"""Those of them that want a machine of their own. The others are caught on a busy one too, by tokens, bytes, pixels, classes and
FLOPs, and CI runs them."""

BESIDE_OTHERS = tuple(name for name in CAUGHT if name not in BY_A_CLOCK)

pytestmark = pytest.mark.slow

FEW = ("--images", "64", "--batch", "16", "--count", "3")

SOUND = ("full_var", "prefix_exit@e2", "fastvar@skip1", "figures", "forger", "clock_for_all", "guessing")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cheating.install(tmp_path_factory.mktemp("site") / "site")


def run(site: Path, out: Path, rows: str, *more: str, rounds: int = 1) -> dict[str, Record]:
    command = [
        sys.executable, "-m", "varbench", "run", "--plugins", rows, "--out", str(out), "--dtype", "float32", "--rounds",
        str(rounds), "--budget", "0.01", "--fresh", *more,
    ]  # fmt: skip
    places = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    return {record.row.row: record for record in load_records([out]).records}


@pytest.fixture(scope="module")
def records(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """One run of all that cheat for their own row, beside sound ones."""
    rows = ",".join((*CAUGHT, *SOUND))
    return run(site, tmp_path_factory.mktemp("cheats") / "run", rows, *FEW)


@pytest.fixture(scope="module")
def few_records(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    return run(
        site,
        tmp_path_factory.mktemp("few") / "run",
        ",".join(BESIDE_OTHERS),
        *("--images", "50", "--batch", "10", "--count", "1", "--no-second-opinion"),
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", BESIDE_OTHERS)
def test_what_no_clock_judges_is_caught_beside_other_work(few_records: dict[str, Record], row: str) -> None:
    _is_caught(few_records[row])


@pytest.mark.timeout(1800)
def test_times_by_scale_add_up_to_the_loop(few_records: dict[str, Record]) -> None:
    checked = 0
    for record in few_records.values():
        if record.timing is not None and (per_scale := record.timing.per_scale) is not None:
            (loop,) = (one for one in record.timing.columns if (one.column, one.regime) == ("loop", "throughput"))
            assert sum(per_scale.seconds) == pytest.approx(loop.median), record.row.row
            checked += 1
    assert checked > 5


def _is_caught(record: Record) -> None:
    assert record.status is Status.COMPLETE, record.reason
    assert record.validity.verdict is Verdict.INVALID
    assert CAUGHT[record.row.row] in "; ".join(record.validity.reasons)


@pytest.mark.idle
@pytest.mark.timeout(1800)
class TestOneRunOfEveryCheat:
    @pytest.mark.parametrize("row", CAUGHT)
    def test_it_is_caught_and_the_reason_says_how(self, records: dict[str, Record], row: str) -> None:
        _is_caught(records[row])

    @pytest.mark.parametrize("row", SOUND)
    def test_who_does_as_he_says_is_valid(self, records: dict[str, Record], row: str) -> None:
        assert records[row].validity.verdict is Verdict.VALID, records[row].validity.reasons

    def test_who_guesses_the_seeds_that_follow_gains_nothing(self, records: dict[str, Record]) -> None:
        """No seed follows another."""
        timing = records["guessing"].timing
        assert timing is not None
        for one in timing.drawn:
            asked = set(one.seeds)
            assert len(asked) > 2 and not asked & {seed + step for seed in asked for step in (1, 2)}

    def test_records_are_the_parents_whoever_writes_them(self, records: dict[str, Record]) -> None:
        assert not any("forged" in (record.reason, *record.validity.reasons) for record in records.values())


@pytest.fixture(scope="module")
def of_three_rounds(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """What is told by chance needs the rounds that a full run has at least: sixteen images and three pairs tell less."""
    return run(site, tmp_path_factory.mktemp("rounds") / "run", ",".join(CAUGHT_IN_ROUNDS), *FEW, rounds=3)


@pytest.mark.idle
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", CAUGHT_IN_ROUNDS)
def test_it_is_caught_in_three_rounds(of_three_rounds: dict[str, Record], row: str) -> None:
    found = of_three_rounds[row]
    assert found.validity.verdict is Verdict.INVALID
    assert CAUGHT_IN_ROUNDS[row] in "; ".join(found.validity.reasons)


@pytest.mark.idle
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", cheating.DENOMINATOR)
def test_a_slowed_denominator_is_seen_beside_a_full_model_alone(site: Path, tmp_path: Path, row: str) -> None:
    rows = run(site, tmp_path / "run", row, "--weights", "random", "--quick", "--batch", "8", "--count", "6")
    assert rows[row].validity.verdict is Verdict.INVALID
    assert "what the speedup is against was slowed" in "; ".join(rows[row].validity.reasons)
