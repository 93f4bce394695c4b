"""Consistency of topological features between layers: arXiv 2410.11042, eqs. 7 and 8, from bars or from the EPI."""

from __future__ import annotations

import numpy as np

from prunebench_topology.image import effective_intervals, effective_persistence_image

MODES = ("consistency", "births")


def shared_features(bars: np.ndarray, n_layers: int) -> np.ndarray:
    """C(l, l') = number of bars alive at both layers (hence between them): int64 (L, L), symmetric."""
    intervals = effective_intervals(bars)
    corners = np.zeros((n_layers + 1, n_layers + 1), dtype=np.int64)
    np.add.at(corners, (intervals[:, 0], intervals[:, 1]), 1)
    # born[i, j] = bars with first <= i and last >= j, as cumulative sums from the corner (0, L).
    born = corners.cumsum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
    low = np.minimum.outer(np.arange(n_layers), np.arange(n_layers))
    high = np.maximum.outer(np.arange(n_layers), np.arange(n_layers))
    return born[low, high + 1]


def betti_curve(bars: np.ndarray, n_layers: int) -> np.ndarray:
    """Betti number of each layer's complex, beta(l) = C(l, l): int64 (L,)."""
    return np.diagonal(shared_features(bars, n_layers)).copy()


def divide_rows(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Rows over their totals, 0 where the total is 0."""
    totals = np.asarray(totals, dtype=np.float64)[:, None]
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def pairwise_consistency(bars: np.ndarray, n_layers: int, mode: str = "consistency") -> np.ndarray:
    """S(l, l') in [0, 1], the share of layer l's features that are alive at layer l' (arXiv 2410.11042, eq. 7).

    Args:
        bars: integer (n, 2) zigzag bars of one homology dimension.
        n_layers: L.
        mode: ``"consistency"``: C(l, l') / beta(l), all features of l.  ``"births"``: only features generated at l,
            l' >= l (entries below the diagonal are 0): the other reading of "generated at l and persisting".

    Returns:
        float64 (L, L); a row is 0 where layer l has no features.
    """
    # With w = 1 and sigma = 0 the image is the histogram of the bars, and its consistency is eq. 7 itself.
    return consistency_from_epi(effective_persistence_image(bars, n_layers, sigma=0.0, weight="none"), mode)


def consistency_from_epi(epi: np.ndarray, mode: str = "consistency") -> np.ndarray:
    """S(l, l') with the mass of an EPI in place of the count of bars.

        S(l, l') = sum{EPI(u, v): u <= min(l, l'), u + v > max(l, l')} / sum{EPI(u, v): u <= l, u + v > l}

    With w = 1 and sigma = 0 this is eq. 7.  How TopoVLM turns its EPI into scores is not known to us: this is our
    reading. For ``mode`` see ``pairwise_consistency``; births takes row u = l alone.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; allowed: {', '.join(MODES)}")
    epi = np.asarray(epi, dtype=np.float64)
    n_layers = len(epi)
    reach = np.arange(n_layers)[:, None] + np.arange(1, n_layers + 1)[None, :]  # u + v
    # alive[u, l] = mass of features born at u that are alive at l >= u.
    alive = np.stack([np.where(reach > layer, epi, 0.0).sum(axis=1) for layer in range(n_layers)], axis=1)
    if mode == "births":
        upper = np.triu(alive)
        return divide_rows(upper, np.diagonal(upper))
    low = np.minimum.outer(np.arange(n_layers), np.arange(n_layers))
    high = np.maximum.outer(np.arange(n_layers), np.arange(n_layers))
    mass = alive.cumsum(axis=0)[low, high]
    return divide_rows(mass, np.diagonal(mass))


def mean_consistency(consistency: np.ndarray, alpha: float = 1.0, mode: str = "consistency") -> np.ndarray:
    """Distance-weighted mean consistency per layer (arXiv 2410.11042, eq. 8; TopoVLM uses alpha = 1):

        Sbar(l) = sum_{l'} |l - l'|^alpha S(l, l') / sum_{l'} |l - l'|^alpha,  l' != l

    The layer itself is left out for every alpha, so that Sbar is continuous in alpha at 0 (eq. 8 read literally would
    count it at alpha = 0 alone).  ``mode="births"`` averages over l' > l.  A layer without partners has Sbar = 0.

    Returns:
        float64 (L,), in [0, 1] if the matrix is.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; allowed: {', '.join(MODES)}")
    if not np.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number, got {alpha!r}")
    consistency = np.asarray(consistency, dtype=np.float64)
    n_layers = len(consistency)
    gap = np.abs(np.subtract.outer(np.arange(n_layers), np.arange(n_layers))).astype(np.float64)
    weights = np.zeros_like(gap)
    np.power(gap, alpha, out=weights, where=gap > 0)
    if mode == "births":
        weights = np.triu(weights)
    return divide_rows((weights * consistency).sum(axis=1, keepdims=True), weights.sum(axis=1))[:, 0]


def combine_dimensions(matrices: list[np.ndarray], bettis: list[np.ndarray]) -> np.ndarray:
    """Mean of S over homology dimensions, row l weighted by layer l's Betti numbers.

    How TopoVLM joins dimensions is not known to us: this is our reading.  A plain sum would let H_0 (one long bar, S
    = 1 everywhere) drown H_1.  The mean over layers is linear in the rows, so this weighs Sbar in the same way.

    Args:
        matrices: one (L, L) consistency matrix per dimension.
        bettis: one (L,) Betti curve per dimension.

    Returns:
        float64 (L, L), rows 0 where all Betti numbers are 0.
    """
    weighted = [np.asarray(b, dtype=np.float64)[:, None] * s for b, s in zip(bettis, matrices, strict=True)]
    return divide_rows(np.sum(weighted, axis=0), np.sum(bettis, axis=0))


def uninformative(scores: np.ndarray) -> str | None:
    """Why scores cannot rank layers, or None: all zero (no features), or all the same."""
    scores = np.asarray(scores)
    if len(scores) == 0 or scores.max() <= 0:
        return "no layer shares a topological feature with another"
    if np.ptp(scores) <= 1e-12 * scores.max():
        return "all layers have the same consistency"
    return None


def adjacent_similarity(adjacency: np.ndarray) -> np.ndarray:
    """Fallback scores: Jaccard index of the kNN graphs of layer l - 1 and layer l, float64 (L,); layer 0 scores 0.

    A layer that leaves the neighbourhoods of its input as they were is the one to remove.  The input of layer 0 is
    not among the points, so layer 0 is never proposed.
    """
    from prunebench_topology.neighbors import graph_jaccard

    return np.array([0.0] + [graph_jaccard(adjacency[i - 1], adjacency[i]) for i in range(1, len(adjacency))])


def epsilon_interval(
    scores: np.ndarray, removed: list[int] | np.ndarray, prunable: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The thresholds that select exactly these layers by the paper's rule: remove l where score(l) > eps * max(score).

    Args:
        scores: (L,) scores, highest removed first.
        removed: indices of the removed layers.
        prunable: bool (L,), layers the rule may touch (default all); the maximum is taken over all layers.

    Returns:
        ``(low, high)``: every eps in [low, high) reproduces the selection; high is inf when nothing is removed, low
        is -inf when nothing prunable is kept.  None when no eps does (ties cut, or the maximum is not positive).
    """
    scores = np.asarray(scores, dtype=np.float64)
    allowed = np.ones(len(scores), dtype=bool) if prunable is None else np.asarray(prunable, dtype=bool)
    gone = np.zeros(len(scores), dtype=bool)
    gone[np.asarray(removed, dtype=np.int64)] = True
    if (gone & ~allowed).any():
        raise ValueError(f"removed layers {np.flatnonzero(gone & ~allowed).tolist()} are not prunable")
    if len(scores) == 0 or scores.max() <= 0:
        return None
    kept = scores[allowed & ~gone]
    low = kept.max() / scores.max() if len(kept) else -np.inf
    high = scores[gone].min() / scores.max() if gone.any() else np.inf
    return (float(low), float(high)) if low < high else None
