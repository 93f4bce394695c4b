"""Zigzag barcodes against golden files, a brute force of a different kind, and properties that any right answer has."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prunebench_topology import ENGINES, barcodes, betti_curve, flag_zigzag_barcodes
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

GOLDEN = Path(__file__).parents[1] / "data" / "zigzag"


def random_sequence(rng, n_layers, n, density, change):
    """Random graphs in which a share ``change`` of the vertex pairs is drawn anew at every layer."""
    graphs = np.zeros((n_layers, n, n), dtype=bool)
    level = rng.random((n, n))
    for graph in graphs:
        level = np.where(rng.random((n, n)) < change, rng.random((n, n)), level)
        upper = np.triu(level < density, 1)
        graph[:] = upper | upper.T
    return graphs


def random_knn(rng, n_layers, n, k, dimension=6):
    """k-NN graphs of independent Gaussian clouds, by a plain float64 sort."""
    graphs = np.zeros((n_layers, n, n), dtype=bool)
    for graph in graphs:
        points = rng.standard_normal((n, dimension))
        squared = ((points[:, None] - points[None]) ** 2).sum(-1)
        np.fill_diagonal(squared, np.inf)
        graph[np.arange(n)[:, None], np.argsort(squared, axis=1)[:, :k]] = True
        graph |= graph.T
    return graphs


def reversed_bars(bars, n_layers):
    """[b, d) -> [2L - 1 - d, 2L - 1 - b), sorted."""
    mirrored = 2 * n_layers - 1 - bars[:, ::-1]
    return mirrored[np.lexsort((mirrored[:, 1], mirrored[:, 0]))]


# --- a second implementation: interval multiplicities from ranks of limit -> colimit, with integers as F_2 vectors ---


def eliminate(vectors):
    """(rank, kernel): kernel vectors are bit masks over the given vectors that sum to zero."""
    pivots, kernel = {}, []
    for number, vector in enumerate(vectors):
        combination = 1 << number
        while vector and vector.bit_length() in pivots:
            other, mask = pivots[vector.bit_length()]
            vector, combination = vector ^ other, combination ^ mask
        if vector:
            pivots[vector.bit_length()] = (vector, combination)
        else:
            kernel.append(combination)
    return len(pivots), kernel


def combine(mask, vectors):
    """Sum of the vectors in a bit mask."""
    total = 0
    for number, vector in enumerate(vectors):
        if mask >> number & 1:
            total ^= vector
    return total


def cycles_and_boundaries(graph, p, place):
    """Cycle basis and boundary generators of the clique complex in dimension p; ``place`` numbers the p-simplices."""
    n = len(graph)

    def cliques(size):
        return [
            c for c in itertools.combinations(range(n), size) if all(graph[e] for e in itertools.combinations(c, 2))
        ]

    def boundary(simplex, number):
        return sum(1 << number[simplex[:i] + simplex[i + 1 :]] for i in range(len(simplex)))

    simplices = cliques(p + 1)
    if p == 0:
        cycles = [1 << place[s] for s in simplices]
    else:
        faces = {c: i for i, c in enumerate(itertools.combinations(range(n), p))}
        _, kernel = eliminate([boundary(s, faces) for s in simplices])
        cycles = [combine(mask, [1 << place[s] for s in simplices]) for mask in kernel]
    return cycles, [boundary(s, place) for s in cliques(p + 2)]


def brute_force(adjacency, p):
    """Barcode in dimension p: #bars over [i, j] = rank of limit -> colimit of the homology zigzag over i..j."""
    n_layers, n, _ = adjacency.shape
    place = {c: i for i, c in enumerate(itertools.combinations(range(n), p + 1))}
    width = max(1, len(place))
    graphs = []
    for layer in range(n_layers):
        graphs.append(adjacency[layer])
        if layer < n_layers - 1:
            graphs.append(adjacency[layer] & adjacency[layer + 1])
    spaces = [cycles_and_boundaries(graph, p, place) for graph in graphs]

    def rank(first, last):
        if first < 0 or last >= len(graphs):
            return 0
        span = range(first, last + 1)
        shift = {i: (i - first) * width for i in span}
        # Arrows go from the odd positions (intersections) to the even ones.
        arrows = [(i, j) for i in span if i % 2 for j in (i - 1, i + 1) if first <= j <= last]
        # Limit: cycles z_i, one per position, with z_i + z_j a boundary in j for every arrow i -> j.
        columns, start = [], []
        for i in span:
            for z in spaces[i][0]:
                start.append(z if i == first else 0)
                columns.append(sum(z << number * width for number, arrow in enumerate(arrows) if i in arrow))
        for number, (_, j) in enumerate(arrows):
            for b in spaces[j][1]:
                start.append(0)
                columns.append(b << number * width)
        _, kernel = eliminate(columns)
        limit = [combine(mask, start) for mask in kernel]
        # Colimit: all cycles modulo boundaries and modulo z_i = image of z_i along every arrow.
        relations = [b << shift[i] for i in span for b in spaces[i][1]]
        relations += [z << shift[i] | z << shift[j] for i, j in arrows for z in spaces[i][0]]
        return eliminate(relations + limit)[0] - eliminate(relations)[0]

    ranks = {(i, j): rank(i, j) for i in range(-1, len(graphs) + 1) for j in range(i, len(graphs) + 1)}
    bars = []
    for i, j in itertools.combinations_with_replacement(range(len(graphs)), 2):
        count = ranks[i, j] - ranks[i - 1, j] - ranks[i, j + 1] + ranks[i - 1, j + 1]
        bars += [(i, j + 1)] * count
    return np.array(sorted(bars), dtype=np.int64).reshape(-1, 2)


def rank_mod_2(matrix):
    """Rank over F_2 of a 0/1 matrix."""
    return eliminate([int("".join(map(str, row)), 2) for row in matrix.astype(int)])[0] if matrix.size else 0


def betti_by_ranks(graph):
    """(beta_0, beta_1) from the boundary matrices of the clique complex."""
    n = len(graph)
    edges = [(i, j) for i in range(n) for j in range(i + 1, n) if graph[i, j]]
    number = {edge: e for e, edge in enumerate(edges)}
    d1 = np.zeros((len(edges), n), dtype=int)
    triangles = []
    for e, (i, j) in enumerate(edges):
        d1[e, [i, j]] = 1
        triangles += [[e, number[i, k], number[j, k]] for k in range(j + 1, n) if graph[i, k] and graph[j, k]]
    d2 = np.zeros((len(triangles), len(edges)), dtype=int)
    for t, faces in enumerate(triangles):
        d2[t, faces] = 1
    rank1 = rank_mod_2(d1)
    return n - rank1, len(edges) - rank1 - rank_mod_2(d2)


# --- golden files, brute force ---


def test_golden_small():
    data = np.load(GOLDEN / "small.npz")
    assert int(data["n"]) == 60
    for i in range(60):
        for found, expected in zip(
            flag_zigzag_barcodes(data[f"A{i}"]), (data[f"h0_{i}"], data[f"h1_{i}"]), strict=True
        ):
            np.testing.assert_array_equal(found, expected, err_msg=f"sequence {i}")


def test_golden_residual_stream():
    data = np.load(GOLDEN / "n128_k15_l32.npz")
    adjacency = np.unpackbits(data["A"], axis=-1)[:, :, : int(data["N"])].astype(bool)
    bars = flag_zigzag_barcodes(adjacency)
    np.testing.assert_array_equal(bars[0], data["h0"])
    np.testing.assert_array_equal(bars[1], data["h1"])
    assert all(b.dtype.kind == "i" for b in bars)


@pytest.mark.parametrize("seed", range(40))
def test_brute_force(seed):
    rng = np.random.default_rng(seed)
    n, n_layers = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    adjacency = random_sequence(rng, n_layers, n, rng.uniform(0.2, 0.8), rng.random())
    for p, found in enumerate(flag_zigzag_barcodes(adjacency)):
        np.testing.assert_array_equal(found, brute_force(adjacency, p))


def test_open_open_bar_by_hand():
    # A square in the intersection only: each layer fills it with another diagonal.
    square = np.zeros((4, 4), dtype=bool)
    for i in range(4):
        square[i, (i + 1) % 4] = square[(i + 1) % 4, i] = True
    layers = np.stack([square, square])
    layers[0, 0, 2] = layers[0, 2, 0] = True
    layers[1, 1, 3] = layers[1, 3, 1] = True
    bars0, bars1 = flag_zigzag_barcodes(layers)
    assert bars0.tolist() == [[0, 3]]
    assert bars1.tolist() == [[1, 2]]
    # The same square with no diagonal in a third layer: born when the second diagonal goes, alive to the end.
    assert flag_zigzag_barcodes(np.concatenate([layers, square[None]]))[1].tolist() == [[1, 2], [3, 5]]


def test_monotone_sequence_is_ordinary_persistence():
    gudhi = pytest.importorskip("gudhi")
    rng = np.random.default_rng(5)
    n, n_layers = 60, 9
    level = np.triu(rng.random((n, n)), 1)
    level = level + level.T
    adjacency = np.stack([(level < t) & ~np.eye(n, dtype=bool) for t in np.linspace(0.02, 0.35, n_layers)])
    entry = n_layers - adjacency.sum(axis=0)  # first layer at which a pair is joined
    tree = gudhi.SimplexTree()
    for i in range(n):
        tree.insert([i], 0)
        for j in range(i):
            if entry[i, j] < n_layers:
                tree.insert([i, j], float(entry[i, j]))
    tree.expansion(2)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    for p, found in enumerate(flag_zigzag_barcodes(adjacency)):
        pairs = np.minimum(2 * np.asarray(tree.persistence_intervals_in_dimension(p)), 2 * n_layers - 1).astype(int)
        assert len(pairs) > 5
        np.testing.assert_array_equal(found, sorted(pairs.tolist()))


# --- properties ---

SEQUENCES = {
    "coherent": lambda rng: random_sequence(rng, 7, 40, 0.2, 0.1),
    "sparse": lambda rng: random_sequence(rng, 6, 70, 0.05, 0.3),
    "independent": lambda rng: random_sequence(rng, 6, 40, 0.25, 1.0),
    "independent knn": lambda rng: random_knn(rng, 5, 70, 6),
    "over one word": lambda rng: random_knn(rng, 3, 130, 5),
    "single layer": lambda rng: random_sequence(rng, 1, 40, 0.2, 1.0),
    "two layers": lambda rng: random_sequence(rng, 2, 40, 0.2, 0.5),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_betti_numbers_time_reversal_relabelling(name):
    rng = np.random.default_rng(11)
    adjacency = SEQUENCES[name](rng)
    n_layers, n, _ = adjacency.shape
    bars = flag_zigzag_barcodes(adjacency)
    expected = np.array([betti_by_ranks(graph) for graph in adjacency]).T
    assert expected[1].max() > 0
    for p in range(2):
        assert (bars[p][:, 0] < bars[p][:, 1]).all() and bars[p].min() >= 0 and bars[p].max() <= 2 * n_layers - 1
        np.testing.assert_array_equal(betti_curve(bars[p], n_layers), expected[p])
    # The intersections' Betti numbers are read off the odd positions.
    for layer in range(n_layers - 1):
        alive = [int(((b[:, 0] <= 2 * layer + 1) & (b[:, 1] > 2 * layer + 1)).sum()) for b in bars]
        assert tuple(alive) == betti_by_ranks(adjacency[layer] & adjacency[layer + 1])
    for p, found in enumerate(flag_zigzag_barcodes(adjacency[::-1])):
        np.testing.assert_array_equal(found, reversed_bars(bars[p], n_layers))
    order = rng.permutation(n)
    for p, found in enumerate(flag_zigzag_barcodes(adjacency[:, order][:, :, order])):
        np.testing.assert_array_equal(found, bars[p])


def test_degenerate_sequences():
    end = 2 * 3 - 1
    empty = flag_zigzag_barcodes(np.zeros((3, 70, 70), dtype=bool))
    assert empty[0].tolist() == [[0, end]] * 70 and empty[1].shape == (0, 2)
    complete = flag_zigzag_barcodes(np.repeat(~np.eye(70, dtype=bool)[None], 3, axis=0))
    assert complete[0].tolist() == [[0, end]] and complete[1].shape == (0, 2)
    one = flag_zigzag_barcodes(np.zeros((3, 1, 1), dtype=bool))
    assert one[0].tolist() == [[0, end]] and one[1].shape == (0, 2)
    none = flag_zigzag_barcodes(np.zeros((3, 0, 0), dtype=bool))
    assert [b.shape for b in none] == [(0, 2), (0, 2)]
    # All layers equal: every class lives from the first layer to the last.
    graph = random_sequence(np.random.default_rng(2), 1, 40, 0.15, 1.0)[0]
    beta = betti_by_ranks(graph)
    equal = flag_zigzag_barcodes(np.repeat(graph[None], 3, axis=0))
    assert [b.tolist() for b in equal] == [[[0, end]] * beta[0], [[0, end]] * beta[1]] and beta[1] > 0


def test_independent_layers_at_full_size_in_time():
    rng = np.random.default_rng(0)
    adjacency = random_knn(rng, 32, 512, 15, dimension=3)
    flag_zigzag_barcodes(adjacency[:1, :8, :8])  # compile outside the clock
    start = time.process_time()
    bars = flag_zigzag_barcodes(adjacency)
    assert time.process_time() - start < 20
    for found, expected in zip(flag_zigzag_barcodes(adjacency[::-1]), bars, strict=True):
        np.testing.assert_array_equal(found, reversed_bars(expected, 32))
    components = [connected_components(csr_matrix(graph))[0] for graph in adjacency]
    np.testing.assert_array_equal(betti_curve(bars[0], 32), components)


def test_input_is_left_alone():
    adjacency = random_sequence(np.random.default_rng(3), 4, 20, 0.3, 0.5)
    adjacency.flags.writeable = False
    before = adjacency.copy()
    first = flag_zigzag_barcodes(adjacency)
    np.testing.assert_array_equal(adjacency, before)
    for a, b in zip(first, flag_zigzag_barcodes(np.asfortranarray(adjacency)), strict=True):
        np.testing.assert_array_equal(a, b)


# --- bad input, engines ---


def asymmetric():
    graph = np.zeros((2, 4, 4), dtype=bool)
    graph[1, 0, 2] = True
    return graph


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (np.zeros((4, 4), dtype=bool), r"shape \(layers, N, N\), got \(4, 4\)"),
        (np.zeros((2, 4, 5), dtype=bool), "shape"),
        (np.zeros((2, 4, 4)), "bool array, got dtype float64"),
        (np.zeros((0, 4, 4), dtype=bool), "no layers"),
        (np.repeat(np.eye(4, dtype=bool)[None], 2, axis=0), "layer 0 has a self-loop at vertex 0"),
        (asymmetric(), r"layer 1 is not symmetric: only \[0, 2\]"),
    ],
)
def test_bad_adjacency(adjacency, message, engine):
    if engine == "dionysus":
        pytest.importorskip("dionysus")
    with pytest.raises(ValueError, match=message) as caught:
        barcodes(adjacency, engine)
    assert "\n" not in str(caught.value)


def test_unknown_engine_and_missing_dionysus(monkeypatch):
    adjacency = np.zeros((2, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match="allowed: numba, dionysus"):
        barcodes(adjacency, "ripser")
    monkeypatch.setitem(sys.modules, "dionysus", None)
    with pytest.raises(ImportError, match="pip install") as caught:
        barcodes(adjacency, "dionysus")
    assert "\n" not in str(caught.value)


def test_dionysus_engine_agrees():
    pytest.importorskip("dionysus")
    rng = np.random.default_rng(8)
    cases = [random_sequence(rng, 5, 25, rng.uniform(0.05, 0.6), rng.random()) for _ in range(10)]
    cases += [random_knn(rng, 3, 60, 5), np.zeros((1, 1, 1), dtype=bool), np.zeros((2, 0, 0), dtype=bool)]
    for adjacency in cases:
        for ours, theirs in zip(barcodes(adjacency), barcodes(adjacency, "dionysus"), strict=True):
            np.testing.assert_array_equal(ours, theirs)
