"""One cheap row of every shipped plugin, as anybody would run it: whatever is looked at, none of them is found to cheat."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from varbench.record import Record, Verdict, load_records
from varbench.rows.manager import manager

pytestmark = [pytest.mark.slow, pytest.mark.idle]  # two minutes of one core, and judged by times too

ROWS = (
    "full_var", "code@n4", "distilled@s1", "dmoe@m25", "fastvar@skip1", "fixed_ratio@p10/d2",
    "guidance@from4", "h2o@b10", "hack@b10", "prefix_exit@e2", "quant_cache@b4", "scale_window@w1", "scalekv@b10",
    "skipvar@s70", "smaller@narrow", "snapkv@b10", "streaming@b10", "variant@d2",
)  # fmt: skip

TRAINED_HERE = ("actvar@frozen/m75r90", "llamagen")
"""No weights of them ship. One step of training does, in a run of their own: with --train the others would be trained too."""

WANT_AN_EXTRA = {"dit", "quant"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    found = {}
    for rows, more in ((ROWS, ()), (TRAINED_HERE, ("--train", "--steps", "1"))):
        out = tmp_path_factory.mktemp("shipped") / "run"
        command = [
            sys.executable, "-m", "varbench", "run", "--plugins", ",".join(rows), "--out", str(out), "--dtype", "float32",
            "--batch", "4", "--images", "20", "--count", "3", "--rounds", "1", "--budget", "0.01", "--no-second-opinion",
            "--fresh", *more,
        ]  # fmt: skip
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True)
        found.update({record.row.row: record for record in load_records([out]).records})
    return found


def test_every_shipped_plugin_that_wants_no_extra_has_a_row_here() -> None:
    shipped = {name for name in manager().names() if manager().info(name).distribution == "varbench"}
    assert {row.partition("@")[0] for row in (*ROWS, *TRAINED_HERE)} == shipped - WANT_AN_EXTRA


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", [*ROWS, *TRAINED_HERE])
def test_it_is_valid_by_all_that_is_looked_at(records: dict[str, Record], row: str) -> None:
    """Images, memory and stated work are looked at too, which recorded rows do not show."""
    record = records[row]
    assert record.validity.verdict is Verdict.VALID, (record.reason, record.validity.reasons)
    assert None not in (record.quality, record.memory, record.timing), "nothing was left out"


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")
def test_records_tell_what_the_machine_did_and_where(records: dict[str, Record]) -> None:
    for record in records.values():
        assert record.environment.affinity == tuple(sorted(os.sched_getaffinity(0)))
        assert record.environment.load is not None
