"""k-nearest-neighbour graphs, exact also where a few coordinates are huge ("massive activations").

In |x|^2 + |y|^2 - 2xy a coordinate of size 1e4 costs 8 of the digits a distance has: in float32 nothing is left, and
the graph is noise.  Here the points are centred, the Gram matrix is float64, and every entry carries a bound on its
rounding error.  Where the bound leaves open which k are nearest, the candidates' distances are summed directly,
difference by difference, so that the result is that of a float64 brute force, duplicates and ties included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

METRICS = ("euclidean", "cosine")
CHUNK_ENTRIES = 1 << 22  # float64 differences held at once when distances are summed directly (32 MiB)


def as_layers(points: Any) -> Any:
    """Check that ``points`` is array-like of shape (L, N, d) with L, N, d >= 1; torch tensors are taken as they are."""
    if not hasattr(points, "shape"):
        points = np.asarray(points)
    if len(points.shape) != 3 or min(points.shape) < 1:
        raise ValueError(f"points must have shape (layers, samples, features), none 0, got {tuple(points.shape)}")
    return points


def as_float64(points: Any) -> np.ndarray:
    """A numpy array or torch tensor as float64 on the CPU."""
    if hasattr(points, "detach"):
        points = points.detach().cpu().double().numpy()
    return np.asarray(points, dtype=np.float64)


def unit_vectors(array: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, by their largest entry first so that no square overflows."""
    array = array / np.abs(array).max(axis=1, keepdims=True)
    return array / np.sqrt(np.square(array).sum(axis=1, keepdims=True))


def check_cloud(array: np.ndarray, metric: str, layer: int | None) -> None:
    """NaN, Inf, or a zero vector under the cosine metric is a ValueError that names layer and sample."""
    where = "" if layer is None else f"layer {layer}, "
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(f"points hold NaN or Inf at {where}sample {int(np.argmin(finite))}; fix or drop that sample")
    nonzero = array.any(axis=1)
    if metric == "cosine" and not nonzero.all():
        sample = int(np.argmin(nonzero))
        raise ValueError(f"cosine needs non-zero points; {where}sample {sample} is zero: use metric='euclidean'")


@dataclass(frozen=True)
class Distances:
    """Squared distances of one cloud, approximate with a bound; the cloud itself settles what the bound leaves open.

    Attributes:
        points: (N, d), the cloud as it was given (no copy); rows are converted when needed.
        metric: ``"euclidean"`` or ``"cosine"`` (then distances are those of the unit vectors).
        squared: (N, N) float64, approximate squared distances.
        slack: (N,) float64; ``squared[i, j]`` is off by at most ``slack[i] + slack[j]``.
    """

    points: Any
    metric: str
    squared: np.ndarray
    slack: np.ndarray

    def neighbours(self, k: int, samples: np.ndarray | None = None) -> np.ndarray:
        """Bool (n, n): ``[i, j]`` = j is among the k' = min(k, n - 1) nearest of i, by (squared distance, index)."""
        chosen = np.arange(len(self.points)) if samples is None else np.asarray(samples)
        n = len(chosen)
        k = min(k, n - 1)
        nearest = np.zeros((n, n), dtype=bool)
        if k == 0:
            return nearest
        squared = self.squared[np.ix_(chosen, chosen)] if samples is not None else self.squared
        slack = self.slack[chosen][:, None] + self.slack[chosen][None, :]
        upper = squared + slack
        np.fill_diagonal(upper, np.inf)
        # At least k points are certainly within the k-th smallest upper bound; nobody beyond it can be among the k.
        limit = np.partition(upper, k - 1, axis=1)[:, k - 1 : k]
        candidates = squared - slack <= limit
        np.fill_diagonal(candidates, False)
        count = candidates.sum(axis=1)
        nearest[count == k] = candidates[count == k]
        for i in np.flatnonzero(count > k):
            others = np.flatnonzero(candidates[i])
            exact = self.exact(chosen[i], chosen[others])
            nearest[i, others[np.argsort(exact, kind="stable")[:k]]] = True
        return nearest

    def exact(self, i: int, others: np.ndarray) -> np.ndarray:
        """Squared distances of point i to others, summed from the differences in float64."""
        step = max(1, CHUNK_ENTRIES // self.points.shape[1])
        origin = self.rows(np.array([i]))
        parts = []
        for begin in range(0, len(others), step):
            difference = self.rows(others[begin : begin + step]) - origin
            parts.append(np.square(difference, out=difference).sum(axis=1))
        return np.concatenate(parts)

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Some points as float64, as unit vectors for the cosine metric."""
        array = as_float64(self.points[chosen])
        return unit_vectors(array) if self.metric == "cosine" else array

    def graph(self, k: int, samples: np.ndarray | None = None) -> np.ndarray:
        """Bool (n, n) graph: i and j are joined when either is among the other's k nearest; no self-loops."""
        nearest = self.neighbours(k, samples)
        return nearest | nearest.T


def distances(points: Any, metric: str = "euclidean", layer: int | None = None) -> Distances:
    """Pairwise distances of one (N, d) cloud, for graphs of any k and of any subset of the samples.

    Raises:
        ValueError: unknown metric; NaN or Inf; a zero vector under the cosine metric (it has no direction).
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; allowed: {', '.join(METRICS)}")
    array = as_float64(points)
    check_cloud(array, metric, layer)
    if metric == "cosine":
        array = unit_vectors(array)  # |x - y|^2 = 2 (1 - cos) there: the same order as the cosine distance
    centred = array - array.mean(axis=0)
    gram = centred @ centred.T
    norms = np.diagonal(gram).copy()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    # A float64 dot product of length d is off by at most about d eps |x||y| <= d eps (|x|^2 + |y|^2) / 2.  Four of
    # them, the two additions and the rounding of the centred coordinates stay below the following.
    slack = 4 * (array.shape[1] + 8) * np.finfo(np.float64).eps * norms
    return Distances(points, metric, squared, slack)


def knn_graph(points: Any, k: int, metric: str = "euclidean") -> np.ndarray:
    """Union k-nearest-neighbour graph of one cloud or of a stack of clouds (arXiv 2410.11042, section 3).

    Args:
        points: (N, d), or (L, N, d) for one cloud per layer; numpy array or torch tensor, any float type.
        k: neighbours per sample, >= 1, the sample itself excluded; min(k, N - 1) are used.
        metric: ``"euclidean"`` or ``"cosine"``.

    Returns:
        Bool (N, N), or (L, N, N): symmetric, no self-loops; i and j are joined when j is among the k nearest of i OR
        the reverse.  Ties are settled by (distance, index), so the result is deterministic.

    Raises:
        ValueError: wrong shape, k < 1, unknown metric, NaN or Inf (naming layer and sample).
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be an integer >= 1, got {k!r}")
    if not hasattr(points, "shape"):
        points = np.asarray(points)
    if len(points.shape) == 2 and min(points.shape) >= 1:
        return distances(points, metric).graph(k)
    points = as_layers(points)
    return np.stack([distances(points[layer], metric, layer).graph(k) for layer in range(points.shape[0])])


def graph_jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Common edges over all edges of two graphs on the same vertices, in [0, 1]; 1 for two empty graphs."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0
