"""Detectable differences and intervals of relative scores, against closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from prunebench.errors import BadParameter
from prunebench.stats import (
    detectable_difference,
    mcnemar,
    paired_difference,
    planned_difference,
    planned_questions,
    relative_intervals,
    relative_score,
)

Z = norm.ppf(0.975) + norm.ppf(0.8)


def test_detectable_difference_by_hand():
    # 30 of 400 pairs lost, 10 won: variance of a difference 0.1 - 0.05² of n, times 400 / 399.
    a, b = [0] * 30 + [1] * 370, [1] * 30 + [0] * 10 + [1] * 360
    found = detectable_difference(a, b)
    error = math.sqrt((0.1 - 0.0025) / 399)
    assert found == pytest.approx((Z * error, error, 1.0, 400))
    assert detectable_difference(a, b, level=0.9, power=0.5).difference == pytest.approx(norm.ppf(0.95) * error)


def test_detectable_difference_over_tasks_and_clusters():
    random = np.random.default_rng(1)
    a = {task: random.integers(0, 2, 120).astype(float) for task in "xy"}
    b = {task: random.integers(0, 2, 120).astype(float) for task in "xy"}
    one, two = (detectable_difference(a[task], b[task]).error for task in "xy")
    both = detectable_difference(a, b, weights={"x": 0.75, "y": 0.25})
    assert both.error == pytest.approx(math.hypot(0.75 * one, 0.25 * two)) and both.n == 240
    # Each answer four times about one image: a quarter of the information.
    copies = [np.repeat(v["x"], 4) for v in (a, b)]
    images = [str(i // 4) for i in range(480)]
    found = detectable_difference(*copies, clusters=images)
    assert found.difference == pytest.approx(detectable_difference(a["x"], b["x"]).difference)
    assert found.design_effect == pytest.approx(4 * (120 / 119) / (480 / 479))


def test_nothing_to_tell_scatter_from():
    assert detectable_difference([1, 0, 1], [1, 0, 1]) is None
    assert detectable_difference([1, 0, 1], [0, 0, 1], clusters=["a"] * 3) is None
    with pytest.raises(BadParameter, match="power"):
        detectable_difference([1, 0], [0, 0], power=1.0)


def test_the_detectable_difference_is_found_four_times_in_five():
    """Two models, true difference as large as was found detectable: 80 % of the intervals leave zero out."""
    random = np.random.default_rng(2)
    lost, won, n = 0.17, 0.08, 400
    error = math.sqrt((lost + won - (lost - won) ** 2) / n)
    target = Z * error
    lost, won = 0.125 + target / 2, 0.125 - target / 2
    found = 0
    for _ in range(1000):
        u = random.uniform(size=n)
        difference = np.where(u < lost, 1.0, np.where(u < lost + won, -1.0, 0.0))
        found += not paired_difference(difference, np.zeros(n), n_boot=400).is_tie
    assert found / 1000 == pytest.approx(0.8, abs=0.045)


def test_planned_difference_solves_its_equation():
    for n, q, effect in ((500, 0.2, 1.0), (2374, 0.1, 1.4), (200, 0.35, 1.0)):
        d = planned_difference(n, q, effect)
        right = (norm.ppf(0.975) * math.sqrt(q) + norm.ppf(0.8) * math.sqrt(q - d * d)) ** 2 / d**2
        assert n / effect == pytest.approx(right)
        assert planned_questions(d, q, effect) == n
    assert planned_difference(1000, 0.2, 2.0) == pytest.approx(planned_difference(500, 0.2))
    assert planned_difference(8, 0.1) is None  # not even if all of the disagreement went one way
    assert planned_difference(10**6, 0.2) == pytest.approx(Z * math.sqrt(0.2 / 10**6), rel=1e-3)


def test_planned_power_is_that_of_mcnemar():
    random = np.random.default_rng(3)
    n, q = 600, 0.2
    d = planned_difference(n, q)
    found = 0
    for _ in range(800):
        u = random.uniform(size=n)
        a = np.where(u < (q + d) / 2, 1.0, 0.0)
        b = np.where((u >= (q + d) / 2) & (u < q), 1.0, 0.0)
        found += mcnemar(a, b) <= 0.05
    assert found / 800 == pytest.approx(0.8, abs=0.06)  # the exact test is a little careful


@pytest.mark.parametrize(
    "call",
    [
        lambda: planned_difference(0, 0.2),
        lambda: planned_difference(10, 0.0),
        lambda: planned_difference(10, 1.2),
        lambda: planned_difference(10, 0.2, design_effect=0.0),
        lambda: planned_difference(10, 0.2, level=1.0),
        lambda: planned_questions(0.3, 0.2),
        lambda: planned_questions(0.0, 0.2),
    ],
)
def test_plans_that_cannot_be_are_refused(call):
    with pytest.raises(BadParameter):
        call()


# -- relative scores ---------------------------------------------------------------------------------------------------


def two_models(n=400, seed=4):
    random = np.random.default_rng(seed)
    dense = (random.uniform(size=n) < 0.75).astype(float)
    pruned = np.where(random.uniform(size=n) < 0.15, 1 - dense, dense)
    return pruned, dense


def test_the_delta_method_gives_the_same_interval():
    pruned, dense = two_models()
    found = relative_intervals({"t": pruned}, {"t": dense}, {"t": 0.25})
    for interval, chance in ((found.plain, 0.0), (found.chance_corrected, 0.25)):
        ratio = (pruned.mean() - chance) / (dense.mean() - chance)
        error = (pruned - ratio * dense).std(ddof=1) / math.sqrt(400) / (dense.mean() - chance)
        assert (interval.low, interval.high) == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), abs=0.01)
        assert interval.method == "bootstrap"


def test_intervals_lie_around_the_score_that_is_shown():
    pruned, dense = two_models()
    scores, reference = {"a": pruned, "b": pruned[:90]}, {"a": dense, "b": dense[:90]}
    for weights in (None, {"a": 3.0, "b": 1.0}):
        found = relative_intervals(scores, reference, {"a": 0.25, "b": 0.5}, weights)
        means = [{task: values.mean() for task, values in own.items()} for own in (scores, reference)]
        told = relative_score(*means, {"a": 0.25, "b": 0.5}, weights)
        assert found.plain.low < told.plain < found.plain.high
        assert found.chance_corrected.low < told.chance_corrected < found.chance_corrected.high
    wider = relative_intervals(scores, reference, clusters={"a": [str(i // 8) for i in range(400)]})
    assert wider.plain.method == "bootstrap-clustered" and wider.chance_corrected is None


def test_the_dense_model_is_uncertain_too():
    """Two models that are right on other questions: less certain than with a dense score taken as fixed."""
    random = np.random.default_rng(5)
    pruned, dense = (random.uniform(size=(2, 300)) < 0.6).astype(float)
    found = relative_intervals({"t": pruned}, {"t": dense}).plain
    fixed = paired_difference(pruned, np.zeros(300), weights=None)
    assert found.high - found.low > 1.25 * (fixed.high - fixed.low) / dense.mean()


def test_perplexities_by_the_delta_method():
    random = np.random.default_rng(6)
    dense = random.normal(3.0, 0.4, 60)
    pruned = dense + random.normal(0.5, 0.2, 60)
    vocabulary = 1000.0
    found = relative_intervals({"p": pruned}, {"p": dense}, {"p": vocabulary}, lower_is_better={"p"}, log_scale={"p"})
    step = (pruned - dense).std(ddof=1) / math.sqrt(60)
    plain = math.exp(dense.mean() - pruned.mean())
    assert (found.plain.low, found.plain.high) == pytest.approx(
        (plain * math.exp(-2 * step), plain * math.exp(2 * step)), rel=0.01
    )
    left, whole = math.log(vocabulary) - pruned, math.log(vocabulary) - dense
    ratio = left.mean() / whole.mean()
    error = (left - ratio * whole).std(ddof=1) / math.sqrt(60) / whole.mean()
    interval = found.chance_corrected
    assert (interval.low, interval.high) == pytest.approx((ratio - 2 * error, ratio + 2 * error), abs=0.003)
    told = relative_score(
        {"p": math.exp(pruned.mean())}, {"p": math.exp(dense.mean())}, {"p": vocabulary}, None, {"p"}, {"p"}
    )
    assert interval.low < told.chance_corrected < interval.high and found.plain.low < told.plain < found.plain.high


def test_no_interval_where_the_ratio_may_be_anything():
    pruned, dense = two_models()
    assert relative_intervals({"t": pruned}, {"t": dense}).chance_corrected is None
    assert relative_intervals({"t": pruned}, {"t": dense}, {"t": None}).chance_corrected is None
    assert relative_intervals({"t": pruned}, {"t": dense}, {"t": dense.mean()}).chance_corrected is None
    # Above chance, but by one standard error: one resample in six is not.
    close = dense.mean() - dense.std() / 20
    assert relative_intervals({"t": pruned}, {"t": dense}, {"t": close}).chance_corrected is None
    assert relative_intervals({"t": [0.0, 0.0]}, {"t": [0.0, 0.0]}).plain is None
    alike = relative_intervals({"t": dense}, {"t": dense}, {"t": 0.25})
    assert alike == ((1.0, 1.0, "none"), (1.0, 1.0, "none"))


def test_relative_intervals_refuse_what_is_not_paired():
    for scores, dense in (({}, {}), ({"a": [1]}, {"b": [1]}), ({"a": [1, 0]}, {"a": [1]})):
        with pytest.raises(BadParameter):
            relative_intervals(scores, dense)
    with pytest.raises(BadParameter, match="weight"):
        relative_intervals({"a": [1, 0]}, {"a": [1, 1]}, weights={"a": 0})
