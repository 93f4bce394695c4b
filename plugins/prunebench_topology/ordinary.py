"""Ordinary (one-layer) persistence: the ablation without the zigzag.

TopoVLM (arXiv 2604.16502) reports results without its zigzag but, as far as known to us, not what stands in its
place. Our reading: every layer is described by itself, and layers are compared by their diagrams alone, so that
nothing says WHICH feature of one layer is which of another.

Layer l's filtration is that of its union k-NN clique complexes K_l^1, K_l^2, ..., K_l^k: an edge enters at the
smallest number of neighbours that joins its ends.  (Vietoris-Rips would be in units of the layer's norm, which grows
by orders of magnitude with depth, and could not be compared between layers.)  A class that outlives k dies at k + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunebench_topology.consistency import divide_rows
from prunebench_topology.image import smooth_histogram
from prunebench_topology.neighbors import Distances


def require_gudhi():
    """Import gudhi, or raise ImportError with the command that installs it."""
    try:
        import gudhi
    except ImportError as error:
        raise ImportError(f"zigzag=False needs gudhi ({error}); install it with: pip install gudhi") from None
    return gudhi


def neighbour_filtration(distances: Distances, k: int, samples: np.ndarray | None = None) -> np.ndarray:
    """Smallest number of neighbours (1..k) at which each edge of the union k-NN graph appears, 0 = never: (n, n)."""
    value = np.where(distances.graph(k, samples), k, 0)
    for neighbours in range(k - 1, 0, -1):
        value[distances.graph(neighbours, samples)] = neighbours
    return value


def ordinary_diagrams(filtration: np.ndarray, k: int) -> list[np.ndarray]:
    """Persistence diagrams in dimensions 0 and 1, over F_2, of one layer's clique filtration, by gudhi.

    Args:
        filtration: as ``neighbour_filtration`` gives it.
        k: the largest value; classes alive there die at k + 1.

    Returns:
        ``[diagram0, diagram1]``: int64 (n, 2) of (birth, death), birth < death; vertices are born at 0.

    Raises:
        ImportError: gudhi is not installed.
    """
    gudhi = require_gudhi()
    tree = gudhi.SimplexTree()
    for i in range(len(filtration)):
        tree.insert([i], 0.0)
    low, high = np.nonzero(np.triu(filtration))
    tree.insert_batch(np.stack([low, high]), filtration[low, high].astype(np.float64))
    tree.expansion(2)
    # Without persistence_dim_max a complex that has no triangles would be given no H_1.
    tree.compute_persistence(homology_coeff_field=2, min_persistence=0, persistence_dim_max=True)
    diagrams = []
    for dimension in range(2):
        pairs = np.asarray(tree.persistence_intervals_in_dimension(dimension), dtype=np.float64).reshape(-1, 2)
        pairs = np.minimum(pairs, k + 1).astype(np.int64)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        diagrams.append(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))])
    return diagrams


def ordinary_consistency(
    diagrams: Sequence[np.ndarray],
    k: int,
    sigma: float = 1.0,
    weight: str | Callable[[np.ndarray], np.ndarray] = "linear",
) -> np.ndarray:
    """Share of each layer's diagram that another layer's diagram matches (our reading, the counterpart of eq. 7):

        S(l, l') = sum min(I_l, I_l') / sum I_l,

    with I_l the persistence image of layer l's diagram on the grid birth 0..k x persistence 1..k+1.  With sigma = 0
    and weight "none" it is the share of layer l's points that have a partner with the same birth and death in layer
    l'.

    Args:
        diagrams: one integer (n, 2) diagram per layer, of one homology dimension.
        k: as in ``ordinary_diagrams``.
        sigma: Gaussian width in neighbour ranks.
        weight: as in ``effective_persistence_image``.

    Returns:
        float64 (L, L) in [0, 1], 1 on the diagonal; rows of layers without points are 0.
    """
    images = np.zeros((len(diagrams), k + 1, k + 1))
    for image, diagram in zip(images, diagrams, strict=True):
        np.add.at(image, (diagram[:, 0], diagram[:, 1] - diagram[:, 0] - 1), 1.0)
        image[:] = smooth_histogram(image, sigma, weight)
    flat = images.reshape(len(diagrams), -1)
    overlap = np.stack([np.minimum(row, flat).sum(axis=1) for row in flat])
    return divide_rows(overlap, np.diagonal(overlap))
