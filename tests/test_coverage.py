"""Monte Carlo on a known truth: intervals hold it as often as they say, and marks are as seldom false. Seeds are fixed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from varbench.base import stats
from varbench.record import Record, load_records
from varbench.show import compare_speed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("drift", ["steady", "warming", "wandering", "stepping", "waves", "stalling"])
@pytest.mark.parametrize("children", [3, 9])
def test_the_interval_holds_the_truth_in_every_drift(simulated: ModuleType, drift: str, children: int) -> None:
    """0.93 to 0.96 but for what 2000 runs leave open."""
    found = simulated.coverage(stats.paired_ratio, simulated.DRIFTS[drift], children=children, runs=2000)
    assert 0.93 <= found.share <= 0.97


@pytest.mark.parametrize(("drift", "children"), [("steady", 3), ("stepping", 3), ("stalling", 9)])
def test_what_was_done_before_does_not(simulated: ModuleType, drift: str, children: int) -> None:
    found = simulated.coverage(simulated.resampled, simulated.DRIFTS[drift], children=children, runs=500)
    assert not 0.93 <= found.share <= 0.97


@pytest.mark.parametrize("most", [0.03, 0.1, 0.3])
def test_beside_a_neighbour_that_never_rests_the_interval_knows_how_long_calls_waited(
    simulated: ModuleType, most: float
) -> None:
    """By the pairs alone it holds the truth less often than it says already where calls waited for a few per cent."""
    given = {"children": 9, "runs": 1000}
    asked = {told: simulated.beside_a_neighbour(most, truth=1.0, told=told, **given) for told in (True, False)}
    assert asked[True].share >= 0.95 and asked[True].marked <= 0.05
    assert asked[False].share <= 0.93 and asked[False].marked >= 0.07
    assert simulated.beside_a_neighbour(most, truth=1.5, **given).marked >= 0.9, "it still tells what is to be told"


def test_where_nobody_waits_the_interval_is_as_it_was(simulated: ModuleType) -> None:
    quiet, told = (
        simulated.beside_a_neighbour(0.0, children=3, truth=1.5, runs=50, told=told) for told in (True, False)
    )
    assert quiet == told


@pytest.mark.parametrize(("page", "waits"), [(0, 0.0), (1, 0.0), (2, 0.0), (0, 0.024), (1, 0.024), (2, 0.024)])
def test_five_per_cent_are_seen_and_nothing_else_is(simulated: ModuleType, page: int, waits: float) -> None:
    """Also of a row that shares its plan with no other, and so has eight processes, and where all calls wait a little."""
    found = simulated.marks(simulated.PAGES[page], runs=800, waits=waits)
    assert found.seen >= 0.8
    assert found.false <= 0.05 + 2 * (0.05 * 0.95 / 800) ** 0.5


def test_a_page_without_differences_has_seldom_a_mark(simulated: ModuleType) -> None:
    assert simulated.marks(simulated.PAGES[3], runs=800).false <= 0.05 + 2 * (0.05 * 0.95 / 800) ** 0.5


@pytest.fixture(scope="module")
def records(simulated: ModuleType) -> list[Record]:
    return list(load_records([simulated.RECORDED]).records)


@pytest.mark.parametrize("minutes", [None, 3, 6, 10])
def test_two_runs_of_one_code_have_no_verdict_in_nineteen_of_twenty(
    simulated: ModuleType, records: list[Record], minutes: int | None
) -> None:
    """Also on a machine of two states, which a batch of 1 does not gain equally in."""
    assert simulated.two_runs(records, runs=200, minutes=minutes).false <= 0.05


def test_rounds_alone_do_not_tell_two_states_from_two_codes(
    simulated: ModuleType, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_speed, "WITH_MACHINE", 0.0)
    assert simulated.two_runs(records, runs=200, minutes=6).false > 0.1


def test_a_tenth_is_told_from_nothing(simulated: ModuleType, records: list[Record]) -> None:
    assert simulated.two_runs(records, runs=50, change=1.1).seen >= 0.95
    assert simulated.two_runs(records, runs=50, minutes=6, change=1.1).seen >= 0.5


def test_other_images_of_the_same_weights_have_no_verdict(simulated: ModuleType) -> None:
    assert simulated.other_images() == [0, 0, 0]


@pytest.mark.parametrize("drift", ["steady", "warming", "wandering", "stepping", "waves", "stalling"])
def test_who_remembers_no_call_is_not_blamed_and_who_does_is(simulated: ModuleType, drift: str) -> None:
    assert simulated.blamed(simulated.DRIFTS[drift], runs=2000) <= 0.001
    assert simulated.blamed(simulated.DRIFTS[drift], runs=2000, takes=0.1) >= 0.95


@pytest.mark.parametrize(
    ("processes", "others", "slower", "found"),
    [(3, 0, 0.3, 0.3), (3, 12, 0.15, 0.95), (5, 0, 0.15, 0.8), (9, 6, 0.1, 0.95)],
)
def test_a_slowed_full_model_is_found_as_often_as_the_page_says(
    simulated: ModuleType, processes: int, others: int, slower: float, found: float
) -> None:
    given = {"processes": processes, "others": others, "runs": 1000}
    assert simulated.found_slow(slower, **given) >= found
    assert simulated.found_slow(0.0, **given) <= 0.001
