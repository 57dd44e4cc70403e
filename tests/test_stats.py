"""Statistics: golden values, coverage on replayed samples, and what a `no` means."""

from __future__ import annotations

import numpy as np
import pytest

from varbench.base import stats


def replay(generator, *, middle, rounds=3, samples=20, drift=0.03, noise=0.01):
    """Samples as a machine gives them: every round has luck of its own, shared by what runs in it."""
    luck = generator.normal(0, drift, rounds)
    return luck, [list(middle * (1 + luck[r] + generator.normal(0, noise, samples))) for r in range(rounds)]


def test_golden_middle_and_spread():
    samples = [1.0, 2.0, 4.0, 8.0, 100.0]
    assert stats.median(samples) == 4.0
    assert stats.iqr(samples) == 6.0
    assert stats.quantile(samples, 0.9) == pytest.approx(np.quantile(samples, 0.9))
    with pytest.raises(ValueError, match="no samples"):
        stats.median([])
    with pytest.raises(ValueError, match="1 of 2 rounds"):
        stats.bootstrap_median([[1.0], []])


def test_intervals_are_seeded():
    _, rounds = replay(np.random.default_rng(3), middle=1.0)
    assert stats.bootstrap_median(rounds) == stats.bootstrap_median(rounds)
    assert stats.bootstrap_median(rounds) != stats.bootstrap_median(rounds, seed=1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, rounds = replay(generator, middle=1.0, rounds=8)
        found = stats.bootstrap_median(rounds)
        hits += found.low <= 1.0 <= found.high
    assert hits >= 170  # eight rounds: a little below the nominal 95 %, as bootstrap intervals of few clusters are


def test_pairing_cancels_drift():
    generator = np.random.default_rng(1)
    luck, base = replay(generator, middle=1.0, drift=0.2)
    faster = [list(0.5 * (1 + luck[r] + generator.normal(0, 0.01, 20))) for r in range(3)]
    paired = stats.ratio(base, faster)
    assert paired.value == pytest.approx(2.0, rel=0.02)
    assert paired.width < 0.05
    assert stats.ratio(base, faster, paired=False).width > 3 * paired.width


def test_what_may_be_called_a_difference():
    def figure(value, low, high):
        return stats.Interval(value=value, low=low, high=high)

    assert stats.judge_ratio(figure(1.5, 1.4, 1.6)) == "better"
    assert stats.judge_ratio(figure(0.7, 0.6, 0.8)) == "worse"
    assert stats.judge_ratio(figure(1.5, 0.9, 2.0)) == "same"
    assert stats.judge_ratio(figure(1.03, 1.02, 1.04), minimum=0.05) == "same"
    assert stats.judge_ratio(figure(1.03, 1.02, 1.04), floor=0.04) == "same"
    assert stats.judge_ratio(figure(1.03, 1.02, 1.04), minimum=0.01, floor=0.02) == "better"

    assert stats.judge_difference(figure(0.5, 0.3, 0.7), better="lower") == "worse"
    assert stats.judge_difference(figure(0.5, 0.3, 0.7), better="higher") == "better"
    assert stats.judge_difference(figure(0.5, -0.1, 1.1), better="lower") == "same"
    assert stats.judge_difference(figure(0.5, 0.3, 0.7), better="lower", minimum=0.6) == "same"


def test_a_thing_differs_from_itself_by_the_floor_and_no_more():
    generator = np.random.default_rng(2)
    luck, first = replay(generator, middle=1.0)
    second = [list(1 + luck[r] + generator.normal(0, 0.01, 20)) for r in range(3)]
    floor = stats.aa_floor(first, second)
    assert 0 < floor < 0.03
    assert stats.judge_ratio(stats.ratio(first, second), floor=floor) == "same"


def test_differences_of_figures_add_in_quadrature():
    gap = stats.difference(stats.Interval(value=5.0, low=4.7, high=5.3), stats.Interval(value=6.0, low=5.6, high=6.4))
    assert (gap.value, gap.low, gap.high) == pytest.approx((1.0, 0.5, 1.5))


def test_warnings_end_with_the_next_command():
    steady = [[1.0, 1.01, 0.99]] * 3
    assert stats.spread_warning("variant@d8", steady) is None
    text, command = stats.spread_warning("variant@d8", [[1.0], [1.5], [1.2]])
    assert "variant@d8" in text
    assert "5%" in text
    assert command == "--rounds 12"
    text, command = stats.spread_warning("variant@d8", [[1.0]])
    assert "one round" in text
    assert command == "--rounds 3"
    text, command = stats.spread_warning("variant@d8", [[1.0, 1.0]] * 9)
    assert "fewer rounds would do" in text
    assert command == "--rounds 3"


def test_repeats_combine_by_student_and_never_narrower_than_they_are():
    apart = [stats.Interval(value=v, low=v - 0.1, high=v + 0.1) for v in (1.0, 2.0, 3.0)]
    both = stats.combine(apart)
    assert both.value == 2.0
    assert both.high - 2.0 == pytest.approx(4.30 / 3**0.5)
    alike = stats.combine([stats.Interval(value=1.0, low=0.8, high=1.2)] * 4)
    assert alike.high == pytest.approx(1.1)
    assert stats.combine(apart[:1]) == apart[0]
