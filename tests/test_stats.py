"""The statistics against closed forms, exact enumeration and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from prunebench.errors import BadParameter
from prunebench.stats import flips, mcnemar, mean_interval, paired_difference, relative_score, wilson


@pytest.mark.parametrize(("successes", "n", "level"), [(0, 10, 0.95), (10, 10, 0.95), (81, 263, 0.95), (7, 20, 0.9)])
def test_wilson_is_the_root_of_its_defining_equation(successes, n, level):
    z = norm.ppf((1 + level) / 2)
    share = successes / n
    # The bounds are the p at which the score statistic (share - p)² n / (p (1 - p)) reaches z².
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(b * b - 4 * a * c)
    assert wilson(successes, n, level) == pytest.approx(((-b - root) / (2 * a), (-b + root) / (2 * a)), abs=1e-12)


def test_wilson_published_example():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_has_width_at_the_ends():
    low, high = wilson(0, 30)
    assert 0 <= low < 1e-12 and 0.1 < high < 0.12
    low, high = wilson(30, 30)
    assert 0.88 < low < 0.9 and 1 - 1e-12 < high <= 1


def test_wilson_coverage_by_enumeration():
    # Exact, not simulated: the probability of an outcome whose interval holds the truth.
    n = 200
    intervals = np.array([wilson(k, n) for k in range(n + 1)])
    truths = np.linspace(0.1, 0.9, 81)
    covered = [binom.pmf(np.arange(n + 1), n, p)[(intervals[:, 0] <= p) & (p <= intervals[:, 1])].sum() for p in truths]
    assert 0.94 < np.mean(covered) < 0.96
    assert min(covered) > 0.92


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses(arguments):
    with pytest.raises(BadParameter):
        wilson(*arguments)


def test_mean_interval_picks_the_method():
    assert mean_interval([0, 1, 1, 1]) == (*wilson(3, 4), "wilson")
    assert mean_interval([0.0, 0.5, 1.0, 0.25]).method == "bootstrap"
    with pytest.raises(BadParameter, match="0 and 1 only"):
        mean_interval([0.5, 1.0], method="wilson")
    with pytest.raises(BadParameter, match="unknown interval method"):
        mean_interval([0.5, 1.0], method="guess")


def test_t_interval_by_hand():
    # Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445.
    low, high, method = mean_interval([1, 2, 3, 4, 5], method="t")
    half = 2.776445105 * math.sqrt(2.5) / math.sqrt(5)
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=1e-8)
    assert method == "t"


def test_bootstrap_interval_agrees_with_the_normal_one_on_many_scores():
    scores = np.random.default_rng(1).uniform(size=2000)
    low, high, _ = mean_interval(scores)
    half = 1.959964 * scores.std(ddof=1) / math.sqrt(scores.size)
    assert low == pytest.approx(scores.mean() - half, rel=0.01)
    assert high == pytest.approx(scores.mean() + half, rel=0.01)
    assert mean_interval(scores) == mean_interval(scores.copy())


def test_equal_scores_do_not_claim_certainty():
    low, high, method = mean_interval([0.5] * 50)
    half = math.sqrt(math.log(40) / 100)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))
    assert method == "hoeffding"
    assert mean_interval([0.5]) == (0.0, 1.0, "hoeffding")
    assert mean_interval([17.0]) == (17.0, 17.0, "none")


@pytest.mark.parametrize("scores", [[], [float("nan")], [0.1, float("inf")], [[0.1, 0.2]]])
def test_mean_interval_refuses_what_is_no_list_of_numbers(scores):
    with pytest.raises(BadParameter):
        mean_interval(scores)


def test_relative_score_by_hand():
    # plain: (0.60 / 0.80 + 0.45 / 0.90) / 2; corrected: (0.35 / 0.55 + (-0.05) / 0.40) / 2.
    found = relative_score({"a": 0.60, "b": 0.45}, {"a": 0.80, "b": 0.90}, {"a": 0.25, "b": 0.50})
    assert found.plain == pytest.approx(0.625)
    assert found.chance_corrected == pytest.approx((0.35 / 0.55 - 0.05 / 0.40) / 2)


def test_relative_score_weights_are_normalised():
    scores, dense = {"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.9}
    assert relative_score(scores, dense, weights={"a": 3, "b": 1}).plain == pytest.approx((3 * 0.5 + 1.0) / 4)
    for weights in ({"a": 1}, {"a": 1, "b": 0}):
        with pytest.raises(BadParameter, match="'b'"):
            relative_score(scores, dense, weights=weights)


def test_guessing_keeps_nothing_and_dense_keeps_all():
    dense, chance = {"a": 0.8, "b": 0.9}, {"a": 0.25, "b": 0.5}
    assert relative_score(dense, dense, chance) == pytest.approx((1.0, 1.0))
    guess = relative_score(chance, dense, chance)
    assert guess.chance_corrected == pytest.approx(0.0)
    assert guess.plain == pytest.approx((0.25 / 0.8 + 0.5 / 0.9) / 2)


@pytest.mark.parametrize(
    ("scores", "dense"),
    [
        ({"a": 0.5}, {"a": 0.8, "b": 0.9}),
        ({"a": 0.5, "b": 0.4}, {"a": 0.8}),
        ({"a": 0.5, "b": None}, {"a": 0.8, "b": 0.9}),
        ({"a": 0.5, "b": float("nan")}, {"a": 0.8, "b": 0.9}),
        ({}, {}),
    ],
)
def test_missing_is_never_zero(scores, dense):
    assert relative_score(scores, dense, dict.fromkeys(dense, 0.1)) == (None, None)


def test_no_chance_correction_without_chance_or_above_a_weak_dense_model():
    assert relative_score({"a": 0.4}, {"a": 0.8}) == (0.5, None)
    assert relative_score({"a": 0.4}, {"a": 0.8}, {"a": None}).chance_corrected is None
    assert relative_score({"a": 0.2}, {"a": 0.25}, {"a": 0.25}).chance_corrected is None
    assert relative_score({"a": 0.0}, {"a": 0.0}, {"a": 0.0}) == (None, None)


def test_lower_is_better_turns_the_ratio_over():
    # Perplexity 5 dense, 10 pruned, 105 at chance.
    found = relative_score({"p": 10.0}, {"p": 5.0}, {"p": 105.0}, lower_is_better={"p"})
    assert found == pytest.approx((0.5, 0.95))


def test_paired_difference_of_equal_models_is_an_exact_tie():
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert found == (0.0, 0.0, 0.0, 4)
    assert found.is_tie


def test_paired_difference_matches_its_standard_error():
    # 30 of 400 pairs lost, 10 won: mean -0.05, variance (40/400 - 0.05²) / 400.
    a = [0] * 30 + [1] * 10 + [1] * 360
    b = [1] * 30 + [0] * 10 + [1] * 360
    found = paired_difference(a, b)
    half = 1.96 * math.sqrt((0.1 - 0.0025) / 400)
    assert found.mean == pytest.approx(-0.05)
    assert (found.low, found.high) == pytest.approx((-0.05 - half, -0.05 + half), abs=0.003)
    assert not found.is_tie
    back = paired_difference(b, a)
    assert back.mean == pytest.approx(0.05)


def test_pairing_is_narrower_than_two_independent_intervals():
    random = np.random.default_rng(3)
    base = random.uniform(size=300) < 0.7
    flipped = np.where(random.uniform(size=300) < 0.05, ~base, base)
    paired = paired_difference(base.astype(float), flipped.astype(float))
    unpaired = 2 * 1.96 * math.sqrt(2 * 0.7 * 0.3 / 300)
    assert paired.high - paired.low < 0.6 * unpaired


def test_paired_difference_over_tasks_weighs_tasks_not_questions():
    a = {"small": [1.0] * 10, "large": [0.0] * 1000}
    b = {"small": [0.0] * 10, "large": [0.0] * 1000}
    assert paired_difference(a, b).mean == pytest.approx(0.5)
    assert paired_difference(a, b, weights={"small": 2.0, "large": 7.0}).mean == pytest.approx(2.0)


def test_weights_scale_the_interval_with_the_mean():
    random = np.random.default_rng(5)
    a, b = (random.integers(0, 2, size=200).astype(float) for _ in range(2))
    once, thrice = (paired_difference({"t": a}, {"t": b}, weights={"t": w}) for w in (1.0, 3.0))
    assert thrice[:3] == pytest.approx(tuple(3 * value for value in once[:3]))
    assert once == paired_difference(a, b)


def test_paired_difference_covers_the_truth():
    # True difference 0.15 - 0.10 = 0.05; 300 draws of 150 questions. Binomial error of the coverage: 1.3 points.
    random = np.random.default_rng(11)
    hits = 0
    for _ in range(300):
        u = random.uniform(size=150)
        difference = np.where(u < 0.15, 1.0, np.where(u < 0.25, -1.0, 0.0))
        found = paired_difference(difference, np.zeros(150), n_boot=1000)
        hits += found.low <= 0.05 <= found.high
    assert 0.91 < hits / 300 < 0.985


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 0], [1]),
        ([], []),
        ({"x": [1]}, {"y": [1]}),
        ({}, {}),
        ({"x": [1]}, [1]),
        ({"x": [1, 0]}, {"x": [1]}),
    ],
)
def test_paired_difference_refuses_what_is_not_paired(a, b):
    with pytest.raises(BadParameter):
        paired_difference(a, b)


def test_paired_difference_names_the_task_without_weight():
    with pytest.raises(BadParameter, match="'x'"):
        paired_difference({"x": [1]}, {"x": [0]}, weights={})


def test_flips_count_both_ways():
    assert flips([1, 1, 1, 0, 0], [1, 0, 0, 1, 0]) == (2, 1)
    with pytest.raises(BadParameter):
        flips([0.5, 1], [1, 1])


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs():
    a, b = [1] * 9 + [0] * 1 + [1] * 50, [0] * 9 + [1] * 1 + [1] * 50
    # 9 against 1: p = 2 (C(10,0) + C(10,1)) / 2^10.
    assert mcnemar(a, b) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(b, a) == pytest.approx(mcnemar(a, b))
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1.0


def test_stats_needs_neither_torch_nor_pandas():
    import subprocess
    import sys

    code = (
        "import sys, prunebench.stats, prunebench.leaderboard; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
