"""From zigzag bars to effective intervals, the effective persistence image (EPI) and its activity profile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda tau: tau,
    "none": np.ones_like,
    "sqrt": np.sqrt,
    "log": np.log1p,
}


def effective_intervals(bars: np.ndarray) -> np.ndarray:
    """Model-layer intervals of zigzag bars: ``(ceil(b / 2), ceil(d / 2))``, empty ones dropped.

    Args:
        bars: integer (n, 2), half-open on the zigzag grid (layer l at 2l, intersections at odd positions).

    Returns:
        int64 (m, 2): the bar is alive exactly at layers ``first .. last - 1``.  A bar that lived in an intersection
        only is gone.  This is the merging of four grid cells into one of arXiv 2410.11042, eq. 4.
    """
    bars = np.asarray(bars, dtype=np.int64).reshape(-1, 2)
    halved = (bars + 1) // 2
    return halved[halved[:, 0] < halved[:, 1]]


def effective_histogram(bars: np.ndarray, n_layers: int) -> np.ndarray:
    """Count of effective intervals, float64 (L, L): row u = first layer, column v - 1 = v layers of persistence."""
    intervals = effective_intervals(bars)
    if len(intervals) and (intervals.min() < 0 or intervals.max() > n_layers):
        raise ValueError(f"bars reach beyond {n_layers} layers; pass the number of layers they were computed from")
    histogram = np.zeros((n_layers, n_layers))
    np.add.at(histogram, (intervals[:, 0], intervals[:, 1] - intervals[:, 0] - 1), 1.0)
    return histogram


def smooth_histogram(
    histogram: np.ndarray, sigma: float, weight: str | Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Weigh a square histogram by persistence (column j stands for j + 1) and spread each entry as a Gaussian."""
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be a finite number >= 0, got {sigma!r}")
    if not callable(weight):
        if weight not in WEIGHTS:
            raise ValueError(f"unknown weight {weight!r}; allowed: {', '.join(WEIGHTS)}")
        weight = WEIGHTS[weight]
    size = len(histogram)
    weighted = histogram * weight(np.arange(1, size + 1, dtype=np.float64))
    if sigma == 0:
        return weighted
    # The Gaussian is a product and the points lie on the grid: two small matrix products, however many bars there are.
    offsets = np.subtract.outer(np.arange(size), np.arange(size))
    kernel = np.exp(-(offsets**2) / (2.0 * sigma**2))
    return kernel @ weighted @ kernel


def effective_persistence_image(
    bars: np.ndarray, n_layers: int, sigma: float = 1.0, weight: str | Callable[[np.ndarray], np.ndarray] = "linear"
) -> np.ndarray:
    """Effective persistence image (TopoVLM, arXiv 2604.16502):

        EPI(u, v) = sum_j w(tau_j) exp(-((u - b_j)^2 + (v - tau_j)^2) / (2 sigma^2))

    over effective intervals [b_j, b_j + tau_j), at u = 0..L-1 and v = 1..L, in layers.

    Args:
        bars: integer (n, 2) zigzag bars of one homology dimension.
        n_layers: L.
        sigma: width of the Gaussian in layers; 0 is the exact weighted histogram.  The paper's value is not known to
            us; 1.0 is our reading.
        weight: w, by name (``"linear"``: tau, ``"none"``: 1, ``"sqrt"``, ``"log"``: log(1 + tau)) or a function of
            tau.  The paper's choice is not known to us; linear, usual for persistence images, is our reading.

    Returns:
        float64 (L, L): row u, column v - 1.

    Raises:
        ValueError: negative sigma, unknown weight, bars that do not fit L.
    """
    return smooth_histogram(effective_histogram(bars, n_layers), sigma, weight)


def activity(epi: np.ndarray) -> np.ndarray:
    """Activity profile A(l) = sum_v EPI(l, v) of an (L, L) image: float64 (L,), weight of the features born near l."""
    return np.asarray(epi, dtype=np.float64).sum(axis=1)
