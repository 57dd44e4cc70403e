"""Statistics: golden values, coverage on replayed samples, and what a `no` means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

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
    paired = stats.paired_ratio(base, faster)
    assert paired.value == pytest.approx(2.0, rel=0.02)
    assert paired.width < 0.05
    assert stats.unpaired_ratio(base, faster).width > 3 * paired.width


def test_a_ratio_is_students_over_rounds_and_its_pairs_where_there_is_one_round():
    found = stats.paired_ratio([[2.0, 2.0], [2.2, 2.2], [1.8, 1.8]], [[1.0, 1.0]] * 3)
    logs = np.log([2.0, 2.2, 1.8])
    assert np.log(found.value) == pytest.approx(logs.mean())
    assert np.log(found.high / found.value) == pytest.approx(4.3027 * logs.std(ddof=1) / 3**0.5, rel=1e-4)
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(logs, 0).pvalue)
    one = stats.paired_ratio([[2.0, 2.2, 1.8, 2.1]], [[1.0] * 4])
    assert one.low < 2.05 < one.high
    assert one.degrees == 3
    alone = stats.paired_ratio([[2.0]], [[1.0]])
    assert (alone.degrees, alone.p) == (0, 1.0), "one pair shows no difference"


def test_a_stalled_pair_moves_its_round_by_nothing():
    calm = [[1.0, 1.01, 0.99, 1.0, 1.0]] * 3
    stalled = [[1.0, 1.01, 9.0, 1.0, 1.0], *calm[1:]]
    assert stats.paired_ratio(stalled, calm).value == pytest.approx(1.0, rel=0.01)


def test_quotients_are_welchs():
    one, other = [0.1, 0.12, 0.08, 0.11], [0.3, 0.35, 0.28]
    found = stats.quotient(stats.over_rounds(other), stats.over_rounds(one))
    assert found.p == pytest.approx(scipy.stats.ttest_ind(other, one, equal_var=False).pvalue)
    assert np.log(found.value) == pytest.approx(np.mean(other) - np.mean(one))


def test_what_both_calls_of_a_pair_lost_moves_their_ratio_by_neither():
    """Two threads may have waited at once for what is added up, and of more of them, or nobody knows how many, less is certain."""
    assert stats.net(0.1, 0.0, threads=2) == pytest.approx((0.1, 0.0))
    assert stats.net(0.02, 0.02, threads=1) == (0.0, 0.0)
    assert stats.net(0.02, 0.02, threads=2) == pytest.approx((1 - 0.98 / 0.99,) * 2)
    assert stats.net(0.04, 0.2, threads=2) == pytest.approx((0.0, 1 - 0.8 / 0.98))
    assert stats.net(0.04, 0.2, threads=None) == pytest.approx((0.04, 0.2))
    times, lost = (1.0 / 0.96, 1.0 / 0.8), math.log(0.96 / 0.8)
    down, up = stats.delayed([math.log(times[0] / times[1])], [stats.net(0.04, 0.2, threads=1)])
    assert (down, up) == pytest.approx((0.0, lost)), "of one thread it is known to the digit"


def test_delays_move_a_median_no_farther_than_pairs_can_and_a_quotient_by_those_of_both():
    logs = [0.40, 0.41, 0.42]
    assert stats.delayed(logs, [(0.0, 0.0)] * 3) == (0.0, 0.0)
    assert stats.delayed(logs, [(0.0, 0.0), (0.9, 0.0), (0.0, 0.0)]) == pytest.approx((0.01, 0.0)), (
        "another is in the middle"
    )
    down, up = stats.delayed(logs, [(0.1, 0.2)] * 3)
    assert (down, up) == pytest.approx((-math.log(0.9), -math.log(0.8)))
    plain = stats.over_rounds(logs)
    one = stats.moved(plain, (down, up))
    assert (one.value, one.error, one.degrees) == (pytest.approx(plain.value), plain.error, plain.degrees)
    assert (one.low / plain.low, one.high / plain.high) == pytest.approx((0.9, 1 / 0.8))
    assert stats.moved(plain, (0.0, 0.0)) is plain
    over = stats.quotient(plain, one)
    assert (over.down, over.up) == pytest.approx((up, down)), (
        "what makes the lower one larger makes the quotient smaller"
    )
    assert plain.p < one.p < 0.05 and stats.moved(plain, (0.5, 0.0)).p == 1.0
    assert stats.moved(plain, (0.0, 0.5)).p == plain.p, "an equal one is on the other side"


def test_holm_goes_on_while_the_next_passes():
    assert stats.holm([]) == []
    assert stats.holm([0.04, 0.04]) == [False, False]  # each would pass alone
    assert stats.holm([0.04, 0.01, 0.9]) == [False, True, False]
    assert stats.holm([0.024, 0.001, 0.049]) == [True, True, True]


def test_what_may_be_called_a_difference():
    def figure(value, low, high):
        return stats.Interval(value=value, low=low, high=high)

    assert stats.judge_ratio(figure(1.5, 1.4, 1.6)) == "better"
    assert stats.judge_ratio(figure(0.7, 0.6, 0.8)) == "worse"
    assert stats.judge_ratio(figure(1.5, 0.9, 2.0)) == "same"
    assert stats.judge_ratio(figure(1.03, 1.02, 1.04), minimum=0.05) == "same"
    assert stats.judge_ratio(figure(1.03, 1.02, 1.04), minimum=0.01) == "better"

    assert stats.judge_difference(figure(0.5, 0.3, 0.7), better="lower") == "worse"
    assert stats.judge_difference(figure(0.5, 0.3, 0.7), better="higher") == "better"
    assert stats.judge_difference(figure(0.5, -0.1, 1.1), better="lower") == "same"


def test_differences_of_figures_add_in_quadrature():
    gap = stats.difference(stats.Interval(value=5.0, low=4.7, high=5.3), stats.Interval(value=6.0, low=5.6, high=6.4))
    assert (gap.value, gap.low, gap.high) == pytest.approx((1.0, 0.5, 1.5))


def test_repeats_combine_by_student_and_never_narrower_than_they_are():
    apart = [stats.Interval(value=v, low=v - 0.1, high=v + 0.1) for v in (1.0, 2.0, 3.0)]
    both = stats.combine(apart)
    assert both.value == 2.0
    assert both.high - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    alike = stats.combine([stats.Interval(value=1.0, low=0.8, high=1.2)] * 4)
    assert alike.high == pytest.approx(1.1)
    assert stats.combine(apart[:1]) == apart[0]
