"""Overlap and rank correlation, against scipy and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from prunebench.agreement import jaccard, matrix, pairwise, rank_correlation, summary
from prunebench.errors import BadParameter


def test_jaccard_by_hand():
    assert jaccard({1, 2, 3}, {2, 3, 4, 5}) == pytest.approx(2 / 5)
    assert jaccard((1, 2), (3, 4)) == 0.0
    assert jaccard((), ()) == 1.0  # nothing removed by either: they agree
    assert jaccard((), (1,)) == 0.0
    assert jaccard(range(16), range(16)) == 1.0


def test_kendall_by_hand():
    # 1 2 3 4 against 1 2 4 3: 5 of the 6 pairs in the same order, 1 in the other.
    assert rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert rank_correlation([1, 2, 3], [9, 5, 1]) == pytest.approx(-1.0)
    # Ties: pairs (0, 1) tied in the first. τ-b = (2 − 0) / sqrt((3 − 1) 3).
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(6))


def test_spearman_by_hand():
    # Σ d² = 0 + 0 + 1 + 1, ρ = 1 − 6 · 2 / (4 · 15).
    assert rank_correlation([1, 2, 3, 4], [10, 20, 40, 30], "spearman") == pytest.approx(1 - 12 / 60)


@pytest.mark.parametrize("seed", range(4))
def test_as_scipy_with_ties(seed):
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 5, 30).astype(float), random.integers(0, 5, 30).astype(float)
    assert rank_correlation(a, b) == pytest.approx(kendalltau(a, b).statistic)
    assert rank_correlation(a, b, "spearman") == pytest.approx(spearmanr(a, b).statistic)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [1.0, float("nan"), 2.0], None])
def test_what_ranks_nothing_is_none_and_never_zero(scores):
    assert rank_correlation(scores, [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, 2.0, 3.0], scores, "spearman") is None
    assert rank_correlation(scores, scores) is None


def test_one_layer_ranks_nothing():
    assert rank_correlation([1.0], [2.0]) is None


def test_scores_of_other_depths_are_refused():
    with pytest.raises(BadParameter, match="3 and of 2 layers"):
        rank_correlation([1, 2, 3], [1, 2])
    with pytest.raises(BadParameter, match="kendall or spearman"):
        rank_correlation([1, 2, 3], [1, 2, 3], "pearson")


def test_pairs_matrix_and_summary():
    sets = [{1, 2}, {2, 3}, {1, 2}]
    table = matrix(sets, jaccard)
    assert table == [[1.0, 1 / 3, 1.0], [1 / 3, 1.0, 1 / 3], [1.0, 1 / 3, 1.0]]
    assert pairwise(sets, jaccard) == [1 / 3, 1.0, 1 / 3]
    found = summary([1 / 3, None, 1.0, 1 / 3])
    assert (found.mean, found.least, found.n) == (pytest.approx(5 / 9), 1 / 3, 3)
    assert summary([None]) == (None, None, 0)
