"""Clustered resampling against closed forms, a second implementation and the unclustered one."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from prunebench.clustered import cluster_codes, resampled_means, t_level
from prunebench.errors import BadParameter
from prunebench.stats import design_effect, mean_interval, paired_difference, relative_intervals, standard_error

RANDOM = np.random.default_rng(7)
CLUSTERS = [f"image-{i // 3}" for i in range(90)]
SCORES = np.repeat(RANDOM.uniform(size=30), 3)  # answers about one image are all alike


def test_clusters_of_one_are_no_clusters():
    assert cluster_codes([], 5) is None and cluster_codes(["a", "b", "c"], 3) is None
    assert cluster_codes(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    graded = RANDOM.uniform(size=40)
    alone = [str(i) for i in range(40)]
    assert mean_interval(graded, clusters=alone) == mean_interval(graded)
    assert mean_interval([0, 1, 1], clusters=["a", "b", "c"]).method == "wilson"
    other = RANDOM.uniform(size=40)
    assert paired_difference(graded, other, clusters=alone) == paired_difference(graded, other)


def test_equal_answers_in_a_cluster_count_once():
    """With copies in each cluster the interval is that of one answer of each, and the design effect their number."""
    first = SCORES[::3]
    assert standard_error(SCORES, CLUSTERS) == pytest.approx(first.std(ddof=1) / math.sqrt(30))
    assert standard_error(SCORES) == pytest.approx(SCORES.std(ddof=1) / math.sqrt(90))
    assert design_effect(SCORES, CLUSTERS) == pytest.approx(3 * (30 / 29) / (90 / 89))
    assert design_effect(SCORES) == 1.0
    found = mean_interval(SCORES, clusters=CLUSTERS)
    half = student.ppf(0.975, 29) * first.std(ddof=1) / math.sqrt(30)
    assert found.method == "bootstrap-clustered"
    assert (found.low, found.high) == pytest.approx((SCORES.mean() - half, SCORES.mean() + half), abs=0.012)


def test_the_standard_error_is_the_sandwich_of_a_regression_on_a_constant():
    linear = pytest.importorskip("statsmodels.api")
    values, groups = RANDOM.normal(size=120), RANDOM.integers(0, 25, 120)
    fit = linear.OLS(values, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    count = len(set(groups))
    assert standard_error(values, [str(g) for g in groups]) == pytest.approx(
        fit.bse[0] * math.sqrt(count / (count - 1))
    )


def test_resamples_are_those_of_a_loop_over_clusters():
    """Mean and spread of the resampled means against drawing clusters one by one, sizes unequal."""
    sizes = RANDOM.integers(1, 6, 24)
    names = np.repeat([f"c{i}" for i in range(24)], sizes)
    values = np.concatenate([RANDOM.normal(loc=RANDOM.normal(), size=size) for size in sizes])
    found = resampled_means(values[:, None], names, np.random.RandomState(0), 20_000)
    by_name = [values[names == f"c{i}"] for i in range(24)]
    looped = [
        np.concatenate([by_name[i] for i in draw]).mean()
        for draw in np.random.default_rng(1).integers(0, 24, (8000, 24))
    ]
    stretch = math.sqrt(24 / 23)
    assert found.units == 24 and found.observed[0] == pytest.approx(values.mean())
    assert found.means.std() == pytest.approx(stretch * np.std(looped), rel=0.03)
    assert found.means.mean() == pytest.approx(values.mean() + stretch * (np.mean(looped) - values.mean()), abs=0.01)


def test_the_ratio_bootstrap_is_that_of_scipy():
    """Clusters resampled with their sizes; scipy neither stretches nor takes Student's quantiles."""
    from scipy.stats import bootstrap

    sizes = RANDOM.integers(1, 5, 40)
    names = np.repeat(np.arange(40), sizes).astype(str)
    values = RANDOM.uniform(size=sizes.sum()) + np.repeat(RANDOM.uniform(size=40), sizes)
    sums = np.array([values[names == str(i)].sum() for i in range(40)])
    peer = bootstrap(
        (sums, sizes), lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis), paired=True, vectorized=True,
        n_resamples=20_000, method="percentile", random_state=np.random.default_rng(1),
    )  # fmt: skip
    found = mean_interval(values, clusters=names, n_boot=20_000)
    wider = math.sqrt(40 / 39) * student.ppf(0.975, 39) / norm.ppf(0.975)
    low, high = peer.confidence_interval
    assert (found.high - found.low) / (high - low) == pytest.approx(wider, rel=0.025)
    assert standard_error(values, names) == pytest.approx(peer.standard_error * math.sqrt(40 / 39), rel=0.05)


def test_both_ways_of_drawing_agree():
    """Counts of the few distinct clusters, and clusters one by one."""
    few = np.repeat(RANDOM.integers(0, 2, 400), 2).astype(float)
    names = np.repeat(np.arange(400), 2).astype(str)
    shaken = few + RANDOM.normal(scale=1e-9, size=800)  # all clusters distinct
    one, two = (resampled_means(v[:, None], names, np.random.RandomState(3), 20_000).means for v in (few, shaken))
    assert one.std() == pytest.approx(two.std(), rel=0.02)
    assert np.quantile(one, 0.025) == pytest.approx(np.quantile(two, 0.025), abs=0.003)


def test_t_level():
    # Its normal quantile is Student's quantile of the level asked for.
    for units in (5, 40, 1000):
        assert norm.ppf((1 + t_level(0.95, [2.0], [units])) / 2) == pytest.approx(student.ppf(0.975, units - 1))
    # Satterthwaite: two equal variances from K units each have 2 (K - 1) degrees of freedom.
    both = t_level(0.9, [1.0, 1.0], [11, 11])
    assert norm.ppf((1 + both) / 2) == pytest.approx(student.ppf(0.95, 20))
    assert t_level(0.95, [0.0], [10]) == 0.95


def test_no_spread_between_clusters_is_no_certainty():
    # Every image has one right and one wrong answer: Hoeffding over 20 images, not over 40 questions.
    found = mean_interval([0.0, 1.0] * 20, clusters=[str(i // 2) for i in range(40)])
    half = math.sqrt(math.log(40) / (2 * 20))
    assert found.method == "hoeffding" and (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))
    # One image alone tells nothing.
    assert mean_interval([0, 1, 1], clusters=["a"] * 3) == (0.0, 1.0, "hoeffding")
    assert mean_interval([7.0, 9.0], clusters=["a", "a"]) == (8.0, 8.0, "none")


def test_intervals_stay_inside_the_scale():
    for method, name in (("auto", "wilson-clustered"), ("bootstrap", "bootstrap-clustered")):
        few = mean_interval([1, 1, 1, 1, 0, 1], clusters=["a", "a", "b", "b", "c", "d"], method=method)
        assert few.method == name and 0 <= few.low < few.high <= 1


def test_clustered_wilson_is_wilson_of_what_the_answers_are_worth():
    """Each answer three times about one image: the interval of one answer of each, with Student's quantile."""
    right, count = np.repeat([1.0] * 70 + [0.0] * 30, 3), 100
    names = np.repeat(np.arange(count), 3).astype(str)
    low, high, method = mean_interval(right, clusters=names)
    worth = count * (99 / 100) * (300 / 299)  # n / design effect
    z = student.ppf(0.975, count - 1)
    for bound in (low, high):  # the root of its defining equation
        assert abs(0.7 - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / worth))
    assert method == "wilson-clustered"
    # Answers that differ within each image are not worth more than as many alone.
    apart = np.tile([1.0, 0.0, 1.0], 30) + np.eye(90)[1]
    low, high, _ = mean_interval(apart, clusters=np.repeat(np.arange(30), 3).astype(str))
    assert high - low > 0.99 * np.ptp(mean_interval(apart)[:2])


def test_paired_difference_by_cluster():
    a, b = SCORES, np.repeat(RANDOM.uniform(size=30), 3)
    found, alone = paired_difference(a, b, clusters=CLUSTERS), paired_difference(a, b)
    assert found.mean == alone.mean and found.n == alone.n == 90
    assert found.high - found.low > 1.5 * (alone.high - alone.low)
    half = student.ppf(0.975, 29) * (a - b)[::3].std(ddof=1) / math.sqrt(30)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    by_task = paired_difference({"t": a}, {"t": b}, clusters={"t": CLUSTERS})
    assert by_task == found


def test_a_task_without_clusters_stands_beside_one_with():
    a = {"alone": RANDOM.integers(0, 2, 60).astype(float), "shared": SCORES}
    b = {"alone": np.zeros(60), "shared": np.zeros(90)}
    found = paired_difference(a, b, clusters={"shared": CLUSTERS})
    wide = math.hypot(standard_error(a["alone"]), standard_error(SCORES, CLUSTERS)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.99 * wide, rel=0.06)


def test_fast_enough_for_a_whole_benchmark():
    """2,374 questions about 1,187 images, graded so that nothing can be counted, 10,000 resamples."""
    scores, names = RANDOM.uniform(size=2374), [str(i // 2) for i in range(2374)]
    start = time.process_time()
    mean_interval(scores, clusters=names)
    paired_difference(scores, scores[::-1], clusters=names)
    assert time.process_time() - start < 4.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([0, 1, 1], clusters=["a"]),
        lambda: mean_interval([0.5, 1, 1], method="t", clusters=["a", "a", "b"]),
        lambda: mean_interval([0, 0.5, 1], method="wilson", clusters=["a", "a", "b"]),
        lambda: paired_difference([1, 0], [0, 0], clusters=["a"]),
        lambda: paired_difference([1, 0], [0, 0], clusters={"": ["a", "a"]}),
        lambda: paired_difference({"x": [1, 0]}, {"x": [0, 0]}, clusters=["a", "a"]),
        lambda: relative_intervals({"x": [1, 0]}, {"x": [1, 1]}, clusters={"x": ["a"]}),
    ],
)
def test_clusters_are_one_for_each_question(call):
    with pytest.raises(BadParameter):
        call()
