"""The whole method on clouds whose topology is known, the ordinary-persistence ablation, figures, and bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import prunebench_topology
import pytest
from prunebench_topology import draw, topology_scores

RING = np.array([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [1, 2], [0, 2], [0, 1]], dtype=float)


def circle(n=40):
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def line(n=40):
    return np.stack([np.arange(n) / n, np.zeros(n)], axis=1)


def four_circles_two_lines():
    return np.stack([circle()] * 4 + [line()] * 2)


def noisy_layers(seed=0, n_layers=6, n=60):
    """Random clouds that change a little from layer to layer."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 3))
    layers = []
    for _ in range(n_layers):
        points = points + 0.15 * rng.standard_normal((n, 3))
        layers.append(points)
    return np.stack(layers)


def test_one_loop_in_four_of_six_layers():
    # One bar alive at layers 0..3: S = 1 among them and 0 elsewhere; eq. 8 by hand.
    result = topology_scores(four_circles_two_lines(), k=4, epi=False)
    assert result.betti.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    np.testing.assert_allclose(result.scores, [6 / 15, 4 / 11, 4 / 9, 6 / 9, 0, 0])
    # Entering the line from the circle, the loop is cut in their intersection: it dies at 2 * 3 + 1.
    assert result.barcodes[1].tolist() == [[0, 7]]
    assert result.fallback is None
    flat = topology_scores(four_circles_two_lines(), k=4, epi=False, alpha=0)
    np.testing.assert_allclose(flat.scores, [3 / 5] * 4 + [0, 0])
    births = topology_scores(four_circles_two_lines(), k=4, epi=False, mode="births")
    np.testing.assert_allclose(births.scores, [6 / 15, 0, 0, 0, 0, 0])
    # sigma = 0 and w = 1: the image says the same as the bars.
    image = topology_scores(four_circles_two_lines(), k=4, sigma=0, weight="none")
    np.testing.assert_allclose(image.scores, result.scores)
    assert image.epi[1].sum() == 1 and image.epi[1][0, 3] == 1 and image.activity.tolist() == [1, 0, 0, 0, 0, 0]


def test_dimension_0_and_both():
    points = four_circles_two_lines()
    components = topology_scores(points, k=4, p=0, epi=False)
    np.testing.assert_allclose(components.consistency, np.ones((6, 6)))
    assert "same" in components.fallback
    # One component everywhere (S = 1), one loop in layers 0..3: the mean of both, weighted 1:1, then 1:0.
    both = topology_scores(points, k=4, p="both", epi=False)
    loops = np.array([6 / 15, 4 / 11, 4 / 9, 6 / 9])
    np.testing.assert_allclose(both.scores, [*((1 + loops) / 2), 1, 1])


def test_fallback_scores_adjacent_graphs():
    # k = N - 1: complete graphs, no loops anywhere, adjacent graphs equal.
    result = topology_scores(noisy_layers(n=12), k=11)
    assert "no layer shares" in result.fallback
    assert result.scores.tolist() == [0, 1, 1, 1, 1, 1]
    same = topology_scores(np.stack([circle()] * 3), k=4)
    assert "same" in same.fallback and same.scores.tolist() == [0, 1, 1]
    single = topology_scores(circle()[None], k=4)
    assert single.fallback is not None and single.scores.tolist() == [0]


def test_result_is_whole_and_deterministic():
    points = noisy_layers()
    result = topology_scores(points, k=5, bootstrap=3, seed=1)
    assert result.n_layers == 6 and result.scores.shape == (6,) and result.consistency.shape == (6, 6)
    assert result.epi.shape == (2, 6, 6) and result.activity.shape == (6,) and result.betti.shape == (2, 6)
    assert result.bootstrap_scores.shape == (3, 6) and result.bootstrap_std.max() > 0
    assert {"distances", "graphs", "zigzag", "consistency", "bootstrap"} <= set(result.seconds)
    assert result.parameters["k"] == 5 and "points" not in result.parameters
    again = topology_scores(points.astype(np.float32).astype(np.float64), k=5, bootstrap=3, seed=1)
    other = topology_scores(points, k=5, bootstrap=3, seed=2)
    np.testing.assert_array_equal(again.bootstrap_scores, result.bootstrap_scores)
    assert (other.bootstrap_scores != result.bootstrap_scores).any()
    np.testing.assert_array_equal(other.scores, result.scores)


def test_bootstrap_of_everything_is_the_score_itself():
    result = topology_scores(noisy_layers(), k=5, bootstrap=2, bootstrap_fraction=1.0)
    np.testing.assert_allclose(result.bootstrap_scores, [result.scores] * 2)
    assert result.bootstrap_std.tolist() == [0] * 6
    assert topology_scores(noisy_layers(), k=5).bootstrap_std is None
    assert np.isnan(topology_scores(noisy_layers(), k=5, bootstrap=1).bootstrap_std).all()


def test_scores_do_not_depend_on_the_order_of_samples_or_on_units():
    points = noisy_layers()
    expected = topology_scores(points, k=5).scores
    order = np.random.default_rng(9).permutation(points.shape[1])
    np.testing.assert_allclose(topology_scores(points[:, order], k=5).scores, expected)
    np.testing.assert_allclose(topology_scores(points * 2.0 ** np.arange(6)[:, None, None], k=5).scores, expected)


def test_ordinary_diagrams_by_hand():
    pytest.importorskip("gudhi")
    from prunebench_topology.neighbors import distances
    from prunebench_topology.ordinary import neighbour_filtration, ordinary_diagrams

    # Eight points around a square.  With one neighbour (lower index on ties) a path; the second closes the loop; the
    # third adds six chords, each with its triangle, which leave it open.
    values = neighbour_filtration(distances(RING), 3)
    edges = {(int(i), int(j)): int(values[i, j]) for i, j in zip(*np.nonzero(np.triu(values)), strict=True)}
    path = {(0, 1): 1, (1, 2): 1, (2, 3): 1, (3, 4): 1, (4, 5): 1, (5, 6): 1, (0, 7): 1}
    chords = {(0, 2): 3, (1, 3): 3, (2, 4): 3, (3, 5): 3, (0, 6): 3, (1, 7): 3}
    assert edges == path | {(6, 7): 2} | chords
    components, loops = ordinary_diagrams(values, 3)
    assert components.tolist() == [[0, 1]] * 7 + [[0, 4]]
    assert loops.tolist() == [[2, 4]]
    # No triangles at all: the loop must still be found.
    two = neighbour_filtration(distances(RING), 2)
    assert ordinary_diagrams(two, 2)[1].tolist() == [[2, 3]]


def test_ordinary_consistency_by_hand():
    from prunebench_topology.ordinary import ordinary_consistency

    diagrams = [np.array([[1, 3], [1, 3], [2, 4]]), np.array([[1, 3]]), np.empty((0, 2), dtype=int)]
    found = ordinary_consistency(diagrams, 3, sigma=0, weight="none")
    np.testing.assert_allclose(found, [[1, 1 / 3, 0], [1, 1, 0], [0, 0, 0]])
    # Linear weight: persistence 2 for all three points of layer 0.
    np.testing.assert_allclose(ordinary_consistency(diagrams, 3, sigma=0)[0], [1, 1 / 3, 0])
    smooth = ordinary_consistency([np.array([[1, 2]]), np.array([[1, 3]])], 3, sigma=1.0, weight="none")
    assert 0 < smooth[0, 1] < 1


def test_scores_without_the_zigzag():
    pytest.importorskip("gudhi")
    points = four_circles_two_lines()
    result = topology_scores(points, k=4, zigzag=False, epi=False)
    assert result.barcodes is None and result.epi is None and result.activity is None
    assert result.betti.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    np.testing.assert_allclose(result.scores, [6 / 15, 4 / 11, 4 / 9, 6 / 9, 0, 0])
    # Blind to which sample is where: shuffle the samples of one layer and the ablation sees no difference.
    shuffled = points.copy()
    shuffled[1] = points[1][np.random.default_rng(0).permutation(40)]
    np.testing.assert_allclose(topology_scores(shuffled, k=4, zigzag=False, epi=False).scores, result.scores)
    assert topology_scores(shuffled, k=4, epi=False).scores[0] < 0.1
    assert topology_scores(noisy_layers(), k=5, zigzag=False, bootstrap=2).bootstrap_scores.shape == (2, 6)


def test_missing_gudhi_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gudhi", None)
    with pytest.raises(ImportError, match="pip install gudhi"):
        topology_scores(noisy_layers(), k=5, zigzag=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 60}, "k = 60 needs at least 61 samples, got 60"),
        ({"k": 0}, "k must be an integer >= 1"),
        ({"metric": "l1"}, "unknown metric 'l1'; allowed: euclidean, cosine"),
        ({"p": 2}, "unknown p 2; allowed: 0, 1, both"),
        ({"p": True}, "allowed: 0, 1, both"),
        ({"mode": "deaths"}, "allowed: consistency, births"),
        ({"engine": "fzz"}, "allowed: numba, dionysus"),
        ({"weight": "cubic"}, "allowed: linear, none"),
        ({"sigma": -0.5}, "sigma must be"),
        ({"alpha": float("inf")}, "alpha must be"),
        ({"bootstrap": -1}, "bootstrap must be"),
        ({"bootstrap": 2, "bootstrap_fraction": 0.1, "k": 15}, "smaller than k"),
        ({"bootstrap_fraction": 1.5}, "bootstrap_fraction"),
    ],
)
def test_bad_parameters(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        topology_scores(noisy_layers(), **{"k": 5, **change})
    assert "\n" not in str(caught.value)


def test_bad_points():
    points = noisy_layers()
    points[3, 17, 0] = np.inf
    with pytest.raises(ValueError, match="layer 3, sample 17"):
        topology_scores(points, k=5)
    with pytest.raises(ValueError, match="shape"):
        topology_scores(points[0], k=5)


def count_red(path):
    """Pixels in the colour of removed layers."""
    image = pytest.importorskip("PIL.Image").open(path)
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    return int((np.abs(pixels - [0xC8, 0x40, 0x2F]).sum(axis=-1) < 12).sum())


@pytest.mark.parametrize("zigzag", [True, False])
def test_figures(tmp_path, zigzag):
    pytest.importorskip("matplotlib")
    if not zigzag:
        pytest.importorskip("gudhi")
    result = topology_scores(noisy_layers(), k=5, bootstrap=2, zigzag=zigzag)
    marked = draw(result, [1, 3], tmp_path / "marked")
    names = {"consistency.png", "betti.png"} | ({"epi.png", "barcode.png"} if zigzag else set())
    assert {path.name for path in marked} == names == {path.name for path in (tmp_path / "marked").iterdir()}
    plain = {path.name: path for path in draw(result, [], tmp_path / "plain")}
    for path in marked:
        assert path.stat().st_size > 5_000
        assert path.read_bytes() != plain[path.name].read_bytes()
    for name in names - {"betti.png", "barcode.png"}:
        assert count_red(tmp_path / "marked" / name) > 1000 > count_red(plain[name])
    with pytest.raises(ValueError, match=r"not all in 0\.\.5"):
        draw(result, [6], tmp_path)


def test_importing_is_light_and_names_exist():
    code = (
        "import sys, prunebench_topology, prunebench_topology.scoring, prunebench_topology.ordinary;"
        "heavy = {'numba', 'matplotlib', 'gudhi', 'dionysus', 'torch', 'scipy'} & set(sys.modules);"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in prunebench_topology.__all__:
        assert getattr(prunebench_topology, name) is not None
        assert name in dir(prunebench_topology)
    assert set(prunebench_topology.HOMES) == set(prunebench_topology.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = prunebench_topology.nothing_here
