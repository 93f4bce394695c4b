"""Effective intervals, image, consistency: against values worked out by hand and against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from prunebench_topology import (
    activity,
    betti_curve,
    consistency_from_epi,
    effective_intervals,
    effective_persistence_image,
    epsilon_interval,
    mean_consistency,
    pairwise_consistency,
)
from prunebench_topology.consistency import adjacent_similarity, combine_dimensions, shared_features, uninformative

# Three layers: A lives at 0, 1, 2; B at 1, 2; C at 0 (it dies entering layer 1); D in an intersection only.
BARS = np.array([[0, 5], [2, 5], [0, 2], [3, 4]])


def random_bars(rng, n_layers, count):
    ends = np.sort(rng.integers(0, 2 * n_layers, size=(count, 2)), axis=1)
    return ends[ends[:, 0] < ends[:, 1]]


def alive(bars, layer):
    """Bars alive at a layer, straight from the grid: b <= 2 layer < d."""
    return {i for i, (b, d) in enumerate(bars) if b <= 2 * layer < d}


def test_effective_intervals_by_hand():
    found = effective_intervals(BARS)
    assert found.tolist() == [[0, 3], [1, 3], [0, 1]]
    assert effective_intervals(np.array([[0, 1], [1, 2], [1, 3], [2, 3], [3, 5]])).tolist() == [
        [0, 1], [1, 2], [1, 2], [2, 3],
    ]  # fmt: skip
    assert effective_intervals(np.empty((0, 2), dtype=int)).shape == (0, 2)


def test_effective_intervals_are_the_layers_at_which_a_bar_lives():
    for b in range(12):
        for d in range(b + 1, 13):
            layers = [layer for layer in range(7) if b <= 2 * layer < d]
            found = effective_intervals(np.array([[b, d]])).tolist()
            assert found == ([[layers[0], layers[-1] + 1]] if layers else [])


def test_image_by_hand():
    # One bar alive at layers 0 and 1 of 2: tau = 2, at u = 0, v = 2.
    e = np.exp
    np.testing.assert_allclose(
        effective_persistence_image(np.array([[0, 3]]), 2), [[2 * e(-0.5), 2], [2 * e(-1), 2 * e(-0.5)]], rtol=1e-12
    )
    exact = effective_persistence_image(BARS, 3, sigma=0)
    assert exact.tolist() == [[1, 0, 3], [0, 2, 0], [0, 0, 0]]
    assert effective_persistence_image(BARS, 3, sigma=0, weight="none").tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert activity(exact).tolist() == [4, 2, 0]


@pytest.mark.parametrize("weight", ["linear", "none", "sqrt", "log"])
def test_image_is_the_sum_written_out(weight):
    functions = {"linear": lambda t: t, "none": lambda t: 1.0, "sqrt": lambda t: t**0.5, "log": lambda t: np.log(1 + t)}
    bars = random_bars(np.random.default_rng(0), 5, 30)
    sigma = 0.7
    expected = np.zeros((5, 5))
    for b, d in bars:
        first, last = -(-b // 2), -(-d // 2)
        if last > first:
            for u in range(5):
                for v in range(1, 6):
                    gauss = np.exp(-((u - first) ** 2 + (v - (last - first)) ** 2) / (2 * sigma**2))
                    expected[u, v - 1] += functions[weight](last - first) * gauss
    np.testing.assert_allclose(effective_persistence_image(bars, 5, sigma, weight), expected, rtol=1e-10)


def test_consistency_by_hand():
    assert betti_curve(BARS, 3).tolist() == [2, 2, 2]
    assert shared_features(BARS, 3).tolist() == [[2, 1, 1], [1, 2, 2], [1, 2, 2]]
    matrix = pairwise_consistency(BARS, 3)
    assert matrix.tolist() == [[1, 0.5, 0.5], [0.5, 1, 1], [0.5, 1, 1]]
    np.testing.assert_allclose(mean_consistency(matrix, alpha=1), [0.5, 0.75, 2 / 3])
    np.testing.assert_allclose(mean_consistency(matrix, alpha=0), [0.5, 0.75, 0.75])
    np.testing.assert_allclose(mean_consistency(matrix, alpha=-1), [0.5, 0.75, (1 + 0.25) / 1.5])
    births = pairwise_consistency(BARS, 3, mode="births")
    assert births.tolist() == [[1, 0.5, 0.5], [0, 1, 1], [0, 0, 0]]
    np.testing.assert_allclose(mean_consistency(births, mode="births"), [0.5, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_equation_7_from_the_grid(seed):
    rng = np.random.default_rng(seed)
    n_layers = int(rng.integers(1, 8))
    bars = random_bars(rng, n_layers, 25)
    matrix = pairwise_consistency(bars, n_layers)
    births = pairwise_consistency(bars, n_layers, mode="births")
    for i in range(n_layers):
        born = alive(bars, i) - (alive(bars, i - 1) if i else set())
        assert betti_curve(bars, n_layers)[i] == len(alive(bars, i))
        for j in range(n_layers):
            both = len(alive(bars, i) & alive(bars, j))
            assert matrix[i, j] == pytest.approx(both / len(alive(bars, i)) if alive(bars, i) else 0)
            if j >= i:
                assert births[i, j] == pytest.approx(len(born & alive(bars, j)) / len(born) if born else 0)
    # A bar is an interval, so the image with w = 1 and sigma -> 0 carries the same numbers.
    for sigma in (0, 1e-3):
        image = effective_persistence_image(bars, n_layers, sigma=sigma, weight="none")
        np.testing.assert_allclose(consistency_from_epi(image), matrix, atol=1e-12)
        np.testing.assert_allclose(consistency_from_epi(image, "births"), births, atol=1e-12)


def test_consistency_from_image_is_the_sum_written_out():
    image = np.random.default_rng(3).random((4, 4))
    found = consistency_from_epi(image)
    births = consistency_from_epi(image, mode="births")
    cells = [(u, v, image[u, v - 1]) for u in range(4) for v in range(1, 5)]
    for i in range(4):
        for j in range(4):
            shared = sum(m for u, v, m in cells if u <= min(i, j) and u + v > max(i, j))
            assert found[i, j] == pytest.approx(shared / sum(m for u, v, m in cells if u <= i < u + v))
            if j >= i:
                reach = sum(m for u, v, m in cells if u == i and u + v > j)
                assert births[i, j] == pytest.approx(reach / sum(m for u, v, m in cells if u == i))
            else:
                assert births[i, j] == 0


def test_mean_over_few_layers_and_empty_bars():
    assert mean_consistency(np.ones((1, 1))).tolist() == [0]
    assert mean_consistency(np.array([[1, 0.25], [0.75, 1]])).tolist() == [0.25, 0.75]
    nothing = pairwise_consistency(np.empty((0, 2), dtype=int), 4)
    assert nothing.tolist() == np.zeros((4, 4)).tolist()
    assert mean_consistency(nothing).tolist() == [0] * 4


def test_combining_dimensions_weighs_by_betti():
    first, second = np.full((2, 2), 0.9), np.full((2, 2), 0.1)
    mixed = combine_dimensions([first, second], [np.array([1, 0]), np.array([3, 0])])
    np.testing.assert_allclose(mixed, [[0.3, 0.3], [0, 0]])


def test_fallback_reasons_and_scores():
    assert "no layer" in uninformative(np.zeros(3))
    assert "same" in uninformative(np.array([0.3, 0.3, 0.3]))
    assert uninformative(np.array([0.3, 0.3, 0.31])) is None
    graphs = np.zeros((3, 4, 4), dtype=bool)
    for layer, edges in enumerate([[(0, 1), (1, 2)], [(0, 1), (2, 3)], [(0, 1), (2, 3)]]):
        for i, j in edges:
            graphs[layer, i, j] = graphs[layer, j, i] = True
    np.testing.assert_allclose(adjacent_similarity(graphs), [0, 1 / 3, 1])


def test_epsilon_interval_reproduces_the_selection():
    scores = np.array([0.9, 0.5, 0.8, 0.2])
    low, high = epsilon_interval(scores, [0, 2])
    assert (low, high) == (pytest.approx(0.5 / 0.9), pytest.approx(0.8 / 0.9))
    for epsilon in (low, (low + high) / 2, high - 1e-9):
        assert np.flatnonzero(scores > epsilon * scores.max()).tolist() == [0, 2]
    assert np.flatnonzero(scores > high * scores.max()).tolist() != [0, 2]
    assert epsilon_interval(scores, [0, 1]) is None  # a higher score was kept
    assert epsilon_interval(np.array([0.5, 0.5, 0.1]), [0]) is None  # a tie was cut
    assert epsilon_interval(np.zeros(3), [0]) is None
    assert epsilon_interval(scores, []) == (1.0, np.inf)
    # Protected layers are out of the rule's reach, yet the maximum is theirs too.
    prunable = np.array([False, True, True, False])
    assert epsilon_interval(scores, [2], prunable) == (pytest.approx(0.5 / 0.9), pytest.approx(0.8 / 0.9))
    with pytest.raises(ValueError, match="not prunable"):
        epsilon_interval(scores, [0], prunable)


def test_bad_arguments():
    with pytest.raises(ValueError, match="sigma"):
        effective_persistence_image(BARS, 3, sigma=-1)
    with pytest.raises(ValueError, match="allowed: linear, none"):
        effective_persistence_image(BARS, 3, weight="cubic")
    with pytest.raises(ValueError, match="beyond 2 layers"):
        effective_persistence_image(BARS, 2)
    with pytest.raises(ValueError, match="allowed: consistency, births"):
        pairwise_consistency(BARS, 3, mode="deaths")
    with pytest.raises(ValueError, match="alpha"):
        mean_consistency(np.ones((2, 2)), alpha=float("nan"))
