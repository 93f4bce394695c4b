"""k-NN graphs against a float64 brute force, on points that break the usual formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_topology import knn_graph


def brute_force(points, k, metric="euclidean"):
    """Union graph by sorting all pairs: distances from differences, in float64, ties by index."""
    points = np.asarray(points, dtype=np.float64)
    if metric == "cosine":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    n = len(points)
    graph = np.zeros((n, n), dtype=bool)
    for i in range(n):
        squared = ((points - points[i]) ** 2).sum(axis=1)
        order = [j for j in sorted(range(n), key=lambda j: (squared[j], j)) if j != i]
        graph[i, order[:k]] = True
    return graph | graph.T


def massive_activations(rng, n=96, d=256):
    """Unit noise; one feature near 3e4 in every sample, two samples with features of their own near 2e4; float32."""
    points = rng.standard_normal((n, d))
    points[:, 7] = 3e4 + rng.standard_normal(n)
    points[5, 11] = 2e4
    points[60, 13] = -2e4
    return points.astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 4, 15])
def test_massive_activations_exact(k, metric):
    points = massive_activations(np.random.default_rng(k))
    np.testing.assert_array_equal(knn_graph(points, k, metric), brute_force(points, k, metric))


def test_the_plain_float32_formula_fails_on_these_points():
    # Otherwise the test above would prove nothing.
    points = massive_activations(np.random.default_rng(4))
    norms = (points**2).sum(axis=1)
    squared = norms[:, None] + norms[None] - 2 * points @ points.T
    np.fill_diagonal(squared, np.inf)
    naive = np.zeros(squared.shape, dtype=bool)
    naive[np.arange(len(points))[:, None], np.argsort(squared, axis=1)[:, :4]] = True
    expected = brute_force(points, 4)
    assert ((naive | naive.T) & expected).sum() < 0.5 * expected.sum()


def test_differences_far_below_the_norms():
    # Neighbours are decided by 1e-7 beside coordinates of 1e3: below what even a float64 Gram matrix resolves.
    rng = np.random.default_rng(0)
    points = 1e3 * rng.choice([-1.0, 1.0], size=(40, 16)) + 0.0
    points = np.repeat(points[:8], 5, axis=0) + 1e-7 * rng.standard_normal((40, 16))
    np.testing.assert_array_equal(knn_graph(points, 2), brute_force(points, 2))


def test_ties_go_by_index():
    # On the integer line, 2 has 1 and 3 at distance 1: the lower index wins.
    points = np.arange(5.0)[:, None]
    graph = knn_graph(points, 1)
    assert sorted(zip(*np.nonzero(np.triu(graph)), strict=True)) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    # Duplicates: 4 copies of one point and 4 of another, k = 2: copies 0 and 1 are nearest to 2 and 3 (and 0, 1 to each
    # other and to 2); so 2-3 is not joined.
    twice = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0]]), 4, axis=0)
    block = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
    expected = np.zeros((8, 8), dtype=bool)
    expected[:4, :4] = expected[4:, 4:] = block
    np.testing.assert_array_equal(knn_graph(twice, 2), expected)
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2)
    for k in (1, 3, 5, 8):
        np.testing.assert_array_equal(knn_graph(grid, k), brute_force(grid, k))


def test_shapes_stack_and_torch():
    rng = np.random.default_rng(1)
    stack = rng.standard_normal((3, 20, 5)).astype(np.float32)
    graphs = knn_graph(stack, 4)
    assert graphs.shape == (3, 20, 20) and graphs.dtype == np.bool_
    for points, graph in zip(stack, graphs, strict=True):
        np.testing.assert_array_equal(graph, brute_force(points, 4))
        assert not graph.diagonal().any() and (graph == graph.T).all() and graph.sum(axis=1).min() >= 4
    np.testing.assert_array_equal(knn_graph(torch.from_numpy(stack), 4), graphs)
    half = torch.from_numpy(stack).to(torch.bfloat16)
    np.testing.assert_array_equal(knn_graph(half, 4), knn_graph(half.float().numpy(), 4))
    # k beyond the number of others: everybody.
    np.testing.assert_array_equal(knn_graph(stack[0], 50), ~np.eye(20, dtype=bool))
    assert not knn_graph(np.ones((1, 3)), 5).any()


def test_cosine_differs_from_euclidean_and_ignores_length():
    points = np.array([[1.0, 0.0], [10.0, 0.1], [1.0, 1.0], [10.0, 3.0], [-1.0, 3.0]])
    assert knn_graph(points, 1, "cosine")[0, 1] and not knn_graph(points, 1)[0, 1]
    lengths = np.array([1.0, 8.0, 0.5, 1024.0, 2.0])[:, None]  # powers of two: no rounding
    np.testing.assert_array_equal(knn_graph(points * lengths, 2, "cosine"), knn_graph(points, 2, "cosine"))


def test_bad_points():
    stack = np.zeros((3, 6, 2))
    stack[:] = np.arange(6)[:, None] + 1
    broken = stack.copy()
    broken[2, 4, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf at layer 2, sample 4"):
        knn_graph(broken, 2)
    broken[2, 4, 1] = -np.inf
    with pytest.raises(ValueError, match="layer 2, sample 4"):
        knn_graph(broken, 2)
    zero = stack.copy()
    zero[1, 3] = 0
    with pytest.raises(ValueError, match="layer 1, sample 3 is zero"):
        knn_graph(zero, 2, "cosine")
    with pytest.raises(ValueError, match="allowed: euclidean, cosine"):
        knn_graph(stack, 2, "manhattan")
    for k in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="k must be an integer >= 1"):
            knn_graph(stack, k)
    for shape in ((6,), (2, 0, 3), (0, 3), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="shape"):
            knn_graph(np.zeros(shape), 2)
