"""Engines that compute zigzag barcodes: ours (numba) and dionysus, an independent implementation to check against."""

from __future__ import annotations

import numpy as np

from prunebench_topology.zigzag import check_adjacency, check_graphs, flag_zigzag_barcodes

ENGINES = ("numba", "dionysus")
INSTALL_DIONYSUS = (
    "pip install boost-headers && "
    "CPATH=$(python -c 'import boost_headers as b; print(b.__path__[0])')/include "
    "pip install --config-settings=cmake.define.build_examples=OFF dionysus"
)


def barcodes(adjacency: np.ndarray, engine: str = "numba") -> list[np.ndarray]:
    """Zigzag barcodes ``[bars0, bars1]`` of a bool ``(L, N, N)`` stack of graphs; see ``flag_zigzag_barcodes``.

    Args:
        adjacency: as for ``flag_zigzag_barcodes``.
        engine: ``"numba"`` (this package) or ``"dionysus"`` (FastZigzag cone with clearing; much slower, identical
            result).

    Raises:
        ValueError: unknown engine or malformed adjacency.
        ImportError: dionysus asked for and not installed; the message holds the command that installs it.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; allowed: {', '.join(ENGINES)}")
    return flag_zigzag_barcodes(adjacency) if engine == "numba" else dionysus_barcodes(adjacency)


def require_dionysus():
    """Import dionysus, or raise ImportError with the installing command (no wheels on PyPI; it needs Boost headers)."""
    try:
        import dionysus
    except ImportError as error:
        raise ImportError(f"engine 'dionysus' is not usable ({error}); install it with: {INSTALL_DIONYSUS}") from None
    return dionysus


def simplex_runs(adjacency: np.ndarray) -> list[tuple[list[list[int]], list[list[float]]]]:
    """Simplices of dimension 0, 1, 2 that ever appear, each with its times: [in, out, in, ...], in 2s, out 2t + 1.

    A run that reaches the last layer has no "out".
    """
    n_layers, n, _ = adjacency.shape
    result = [([[i] for i in range(n)], [[0.0] for _ in range(n)])]
    edge_codes, triangle_codes = [], []
    for layer in range(n_layers):
        upper = np.triu(adjacency[layer])
        i, j = np.nonzero(upper)
        edge_codes.append(i * n + j)
        # The third vertex is above both: k in N(i) & N(j), k > j, since row j of the upper triangle holds k > j only.
        edge, k = np.nonzero(upper[i] & upper[j])
        triangle_codes.append((i[edge] * n + j[edge]) * n + k)
    for dimension, codes in ((1, edge_codes), (2, triangle_codes)):
        layers = np.repeat(np.arange(n_layers), [len(c) for c in codes])
        code = np.concatenate(codes)
        order = np.lexsort((layers, code))
        code, layers = code[order], layers[order]
        new = np.ones(len(code), dtype=bool)
        new[1:] = (code[1:] != code[:-1]) | (layers[1:] != layers[:-1] + 1)
        starts = np.flatnonzero(new)
        ends = np.append(starts[1:], len(code))[: len(starts)] - 1
        simplices: list[list[int]] = []
        times: list[list[float]] = []
        previous = -1
        for c, s, t in zip(code[starts].tolist(), layers[starts].tolist(), layers[ends].tolist(), strict=True):
            if c != previous:
                vertices = [c // n, c % n] if dimension == 1 else [c // (n * n), c // n % n, c % n]
                simplices.append(vertices)
                times.append([])
                previous = c
            times[-1] += [2.0 * s] if t == n_layers - 1 else [2.0 * s, 2.0 * t + 1]
        result.append((simplices, times))
    return result


def dionysus_diagrams(simplices: list, times: list[list[float]]):
    """The timed part of the dionysus engine: FastZigzag cone, reduction with clearing, zigzag diagrams by type."""
    dionysus = require_dionysus()
    cone = dionysus.fast_zigzag(simplices, times)
    reduced = dionysus.homology_persistence(cone, method="clearing")
    return dionysus.init_zigzag_diagrams(reduced, cone)


def dionysus_input(adjacency: np.ndarray) -> tuple[list, list[list[float]]]:
    """The simplices (as dionysus objects) and their times."""
    dionysus = require_dionysus()
    parts = simplex_runs(adjacency)
    simplices = [dionysus.Simplex(vertices) for part in parts for vertices in part[0]]
    return simplices, [t for part in parts for t in part[1]]


def dionysus_barcodes(adjacency: np.ndarray) -> list[np.ndarray]:
    """Barcodes as ``flag_zigzag_barcodes`` gives them, by dionysus (Dey & Hou's FastZigzag, arXiv 2204.11080)."""
    array = check_adjacency(adjacency)
    require_dionysus()
    n_layers, n, _ = array.shape
    empty = np.empty((0, 2), dtype=np.int64)
    if n == 0:
        return [empty, empty.copy()]
    from prunebench_topology.complexes import pack_graphs

    check_graphs(pack_graphs(array))
    return bars_from_diagrams(dionysus_diagrams(*dionysus_input(array)), n_layers)


def bars_from_diagrams(diagrams, n_layers: int) -> list[np.ndarray]:
    """dionysus' diagrams by dimension and type as ``[bars0, bars1]``."""
    result = []
    for dimension in range(2):
        # Some types are reported with birth above death, and classes that live to the end with an infinite death.
        ends = [
            (point.birth, point.death)
            for kind in (diagrams[dimension].values() if dimension < len(diagrams) else ())
            for point in kind
        ]
        bars = np.sort(np.minimum(np.asarray(ends, dtype=float).reshape(-1, 2), 2 * n_layers - 1), axis=1)
        bars = bars[bars[:, 0] < bars[:, 1]].astype(np.int64)
        result.append(bars[np.lexsort((bars[:, 1], bars[:, 0]))])
    return result
