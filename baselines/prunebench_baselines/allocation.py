"""How much stays in each layer, where layers differ: densities with a given mean. Arrays and numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunebench.errors import BudgetError

__all__ = ["clip_densities", "spread_densities"]


def spread_densities(ratios: Sequence[float], sizes: Sequence[float], share: float, spread: float) -> np.ndarray:
    """Densities that grow with `ratios`, in a range of width 2 · `spread` and of mean 1 − `share`, (layers,).

    d = 2λ (r − min r) / (max r − min r), then shifted. Equal ratios give equal densities. They may lie outside [0, 1]
    (see `clip_densities`).

    Args:
        ratios: one per layer.
        sizes: weights of each layer; the mean counts them.
        share: of all weights that goes.
        spread: λ.
    """
    found, sizes = np.asarray(ratios, np.float64), np.asarray(sizes, np.float64)
    width = found.max() - found.min()
    scaled = 2 * spread * (found - found.min()) / width if width > 0 else np.zeros_like(found)
    return scaled - np.average(scaled, weights=sizes) + (1.0 - share)


def clip_densities(densities: Sequence[float], sizes: Sequence[float], share: float) -> np.ndarray:
    """clip(d + c, 0, 1) with the one c for which the share that goes is `share` of all weights; d where it fits as is.

    Raises:
        BudgetError: no shift meets it.
    """
    found, sizes = np.asarray(densities, np.float64), np.asarray(sizes, np.float64)
    total = sizes.sum()
    goal = (1.0 - share) * total
    if not -1e-9 * total <= goal <= (1 + 1e-9) * total:
        raise BudgetError(
            f"no layer can hold less than none or more than all of its weights: {share:g} of all cannot go"
        )
    if found.min() >= 0 and found.max() <= 1 and abs(found @ sizes - goal) <= 1e-9 * total:
        return found
    low, high = -float(found.max()), 1.0 - float(found.min())  # nothing stays, all stays
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if np.clip(found + middle, 0, 1) @ sizes < goal else (low, middle)
    return np.clip(found + high, 0.0, 1.0)
