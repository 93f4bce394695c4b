"""Differences where the questions tell little: few, all alike, of one image, or rounded by a benchmark's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from prunebench.stats import detectable_difference, mcnemar, paired_difference, standard_error, whole_marks


def test_a_few_answers_that_all_went_one_way_are_no_certainty():
    """Five questions lost, none won: a bootstrap of equal values has no width, but the exact test says p = 1/16."""
    assert mcnemar([0] * 5, [1] * 5) == 2 / 2**5
    found = paired_difference([0.0] * 5, [1.0] * 5)
    assert found.mean == -1 and found.is_tie
    half = t.ppf(0.975, 4) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((-1 - half, -1 + half))
    # The same in marks of 100, and of values that are no exact binary numbers.
    assert paired_difference([0.0] * 5, [100.0] * 5)[:3] == pytest.approx(tuple(100 * x for x in found[:3]))
    assert paired_difference([0.1] * 5, [0.4] * 5)[:3] == pytest.approx(tuple(0.3 * x for x in found[:3]))
    assert not paired_difference([0.0] * 50, [1.0] * 50).is_tie


def test_one_image_and_one_question_tell_nothing():
    for found in (paired_difference([0.0], [1.0]), paired_difference([0] * 9, [1] * 9, clusters=["one"] * 9)):
        assert found.mean == -1 and (found.low, found.high) == pytest.approx((-1 - 1.96, -1 + 1.96), abs=0.001)
    together = paired_difference({"a": [0.0], "b": [1, 0, 1, 1] * 50}, {"a": [1.0], "b": [1, 1, 0, 1] * 50})
    assert together.high - together.low > 1.9  # half of the mean is one question


def test_equal_answers_are_a_difference_of_zero():
    for clusters in (None, ["one"] * 4, ["a", "a", "b", "b"]):
        assert paired_difference([1, 0, 1, 1], [1, 0, 1, 1], clusters=clusters) == (0, 0, 0, 4)


def test_two_questions_have_an_interval():
    low, high = paired_difference([1, 0], [0, 0])[1:3]
    assert (low, high) == pytest.approx((0.5 - t.ppf(0.975, 1) * 0.5, 0.5 + t.ppf(0.975, 1) * 0.5), rel=0.02)


def test_the_interval_is_that_of_linear_standard_errors():
    """A mean is linear: the bootstrap's standard error is the clustered one, and its interval Student's."""
    random = np.random.default_rng(12)
    a, b = random.integers(0, 2, (2, 240)).astype(float)
    for clusters, units in (((), 240), ([str(i // 6) for i in range(240)], 40)):
        found = paired_difference(a, b, clusters=clusters or None)
        half = t.ppf(0.975, units - 1) * standard_error(a - b, clusters)
        assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.03 * half)


def test_whole_marks_are_verdicts_but_for_rounding():
    verdicts = (1.0, 0.0, 1.0)
    assert whole_marks((1.00004, 0.0, 1.00004), verdicts) == verdicts
    assert whole_marks((100.004, 0.0, 100.004), verdicts, 100.0) == (100.0, 0.0, 100.0)
    for contributions in ((1.6, 0.0, 0.5), (0.999, 0.0, 1.0)):
        assert whole_marks(contributions, verdicts) == contributions
    assert whole_marks((0.5, 1.0), ()) == (0.5, 1.0) and whole_marks((), verdicts) == ()


def test_no_scatter_but_for_rounding_detects_nothing():
    assert detectable_difference([0.1] * 7, [0.4] * 7) is None
    thirds = [1.0, 0.0, 0.0] * 4
    images = [str(i // 3) for i in range(12)]
    assert detectable_difference(thirds, [0.0] * 12, clusters=images) is None
