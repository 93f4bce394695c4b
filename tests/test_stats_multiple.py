"""Permutation tests, Holm, tie groups and null bands against closed forms, enumeration and second implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunebench.errors import BadParameter
from prunebench.multiple import N_FLIPS
from prunebench.stats import holm, mcnemar, null_band, sign_flip_tests, tie_groups


def test_one_binary_task_is_mcnemar():
    random = np.random.default_rng(1)
    for _ in range(20):
        a, b = random.integers(0, 2, (2, 60)).astype(float)
        assert sign_flip_tests(((a - b) * 0.37)[None])[0] == mcnemar(a, b)


def test_few_units_are_enumerated():
    units = np.array([3.0, -1.0, 2.0, 5.0, 0.0, 1.5])
    moved = units[units != 0]
    sums = [abs(np.dot(signs, moved)) for signs in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([value >= abs(units.sum()) - 1e-12 for value in sums])
    assert sign_flip_tests(units[None])[0] == pytest.approx(expected)


def test_many_units_agree_with_scipy():
    from scipy.stats import permutation_test

    random = np.random.default_rng(2)
    graded = random.normal(loc=0.15, size=80)
    counted = random.choice([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], size=80)
    for units in (graded, counted):
        peer = permutation_test(
            (units,), np.sum, permutation_type="samples", n_resamples=20_000, random_state=np.random.default_rng(3)
        )
        p = sign_flip_tests(units[None])[0]
        assert p == pytest.approx(peer.pvalue, abs=4 * np.sqrt(p * (1 - p) / N_FLIPS) + 0.002)


def test_rows_do_not_change_each_other():
    random = np.random.default_rng(4)
    units = random.normal(size=(6, 50))
    units[3], units[5] = units[0], -units[1]
    together = sign_flip_tests(units)
    assert together[0] == together[3] and together[1] == together[5]
    assert [sign_flip_tests(row[None])[0] for row in units] == pytest.approx(together)
    assert sign_flip_tests(np.zeros((2, 5))).tolist() == [1.0, 1.0] and sign_flip_tests(np.zeros((0, 5))).size == 0


def test_p_values_are_uniform_without_a_difference_and_small_with_one():
    random = np.random.default_rng(5)
    null = sign_flip_tests(random.normal(size=(400, 60)))
    assert 0.02 < (null <= 0.05).mean() < 0.085 and 0.4 < null.mean() < 0.6
    assert sign_flip_tests(random.normal(loc=3.0, size=(1, 60)))[0] == 1 / (N_FLIPS + 1)


def test_whole_clusters_flip():
    """Two answers that always go together are one coin, and not two: p is 2 / 2^6 and not 2 / 2^12."""
    assert sign_flip_tests(np.full((1, 6), 2.0))[0] == pytest.approx(2 / 2**6)
    assert sign_flip_tests(np.full((1, 12), 1.0))[0] == pytest.approx(2 / 2**12)


def test_holm_by_hand():
    # 0.01 × 4, then 0.02 × 3, then max(0.06, 0.03 × 2), then max(0.06, 0.4).
    assert holm([0.02, 0.4, 0.01, 0.03]) == pytest.approx([0.06, 0.4, 0.04, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0] and holm([]).size == 0 and holm([0.3]).tolist() == [0.3]
    for bad in ([1.2], [-0.1], [float("nan")], [[0.1]]):
        with pytest.raises(BadParameter):
            holm(bad)


def test_holm_is_that_of_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    random = np.random.default_rng(6)
    for size in (1, 2, 17, 60):
        values = random.uniform(size=size) ** 2
        values[: size // 3] = values[0]  # equal ones
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_mcnemar_is_that_of_statsmodels():
    peer = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    random = np.random.default_rng(8)
    a, b = random.integers(0, 2, (2, 90))
    table = [[np.sum((a == i) & (b == j)) for j in (1, 0)] for i in (1, 0)]
    assert mcnemar(a, b) == pytest.approx(peer(table, exact=True).pvalue)


def test_tie_groups_by_hand():
    # Models at 10, 9, 5, 4.5, 1; two apart are told apart, p-values small enough for any correction.
    places = [10, 9, 5, 4.5, 1]

    def tests(leader, others):
        return [0.0001 if places[leader] - places[other] > 2 else 0.9 for other in others]

    assert tie_groups(5, tests) == [0, 0, 1, 1, 2]
    assert tie_groups(0, tests) == [] and tie_groups(1, tests) == [0]
    assert tie_groups(3, lambda leader, others: [1.0] * len(others)) == [0, 0, 0]


def test_a_group_is_what_its_own_first_does_not_beat():
    """The second is told apart, the third (of larger scatter) is not: it ties with the best all the same."""
    p = {(0, 1): 0.001, (0, 2): 0.3, (1, 3): 0.6, (0, 3): 0.001}
    assert tie_groups(4, lambda leader, others: [p[leader, other] for other in others]) == [0, 1, 0, 1]


def test_tie_groups_are_corrected_for_their_number():
    # p = 0.03 alone tells two models apart; one of five equal ones is adjusted to 0.15.
    assert tie_groups(2, lambda leader, others: [0.03] * len(others)) == [0, 1]
    assert tie_groups(6, lambda leader, others: [0.03] * len(others)) == [0] * 6


def test_equal_models_seldom_fall_out_of_the_first_group():
    """Eight equal models: a given one at most 5 % of the time, any of them more often, for the best was picked."""
    random, out = np.random.default_rng(10), np.zeros(8)
    some = 0
    for _ in range(400):
        hard = 0.7 * random.standard_normal(300)
        right = (hard + 0.7 * random.standard_normal((8, 300)) < 0.4).astype(float)
        order = np.argsort(-right.mean(axis=1), kind="stable")
        found = right[order]
        groups = tie_groups(8, lambda leader, others: sign_flip_tests(found[list(others)] - found[leader]))  # noqa: B023
        fallen = order[np.array(groups) > 0]
        out[fallen] += 1
        some += fallen.size > 0
    assert out.mean() / 400 < 0.03 and out.max() / 400 < 0.05 and 0.03 < some / 400 < 0.17


def test_null_band_by_hand():
    assert null_band(0.5, [0.1, 0.2, 0.3, 0.4]) == (1 / 5, 1 / 5, 4)
    assert null_band(0.3, [0.1, 0.2, 0.3, 0.4]) == (3 / 5, 1 / 5, 4)
    assert null_band(0.0, [0.1] * 19) == (1.0, 0.05, 19)
    for score, draws in ((0.5, []), (float("nan"), [0.1]), (0.1, [float("inf")])):
        with pytest.raises(BadParameter):
            null_band(score, draws)


def test_a_random_plan_is_seldom_above_its_own_band():
    random = np.random.default_rng(9)
    found = [null_band(draw[0], draw[1:]).p for draw in random.normal(size=(4000, 20))]
    assert (np.array(found) <= 0.05).mean() == pytest.approx(0.05, abs=0.012)


def test_what_is_no_contribution_is_refused():
    for bad in ([1.0, 2.0], [[float("nan")]], [[[1.0]]]):
        with pytest.raises(BadParameter):
            sign_flip_tests(np.array(bad))
