"""How far methods, or draws of one method, agree: overlap of removed sets, rank correlation of scores. No torch here.

What is not defined is None, never zero: a score that is the same for every layer ranks nothing, so that it has no rank
correlation with any other, not even with itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from prunebench.errors import BadParameter

__all__ = ["Summary", "jaccard", "matrix", "pairwise", "rank_correlation", "summary"]

Correlation = Literal["kendall", "spearman"]
Scores = Sequence[float] | np.ndarray


class Summary(NamedTuple):
    """Mean and least of the pairs whose value is defined, and how many those are; None where there is none."""

    mean: float | None
    least: float | None
    n: int


def jaccard(first: Collection[Any], second: Collection[Any]) -> float:
    """|A ∩ B| / |A ∪ B|, in [0, 1]; two empty sets overlap fully."""
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def rank_correlation(first: Scores | None, second: Scores | None, method: Correlation = "kendall") -> float | None:
    """Kendall's τ-b or Spearman's ρ of two scores of the same layers, both with ties taken into account.

    Args:
        first, second: (L,) each, higher means removed earlier; None for a method without scores.
        method: ``kendall`` or ``spearman``.

    Returns:
        In [-1, 1]; None where either is missing, holds a number that is not finite, is the same for every layer, or
        has fewer than two layers.

    Raises:
        BadParameter: scores of different numbers of layers, or no such method.
    """
    if method not in ("kendall", "spearman"):
        raise BadParameter(f"no rank correlation {method!r}: kendall or spearman")
    if first is None or second is None:
        return None
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise BadParameter(f"scores of {a.size} and of {b.size} layers have no rank correlation")
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import kendalltau, spearmanr  # slow to import, and most commands compare nothing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float((kendalltau if method == "kendall" else spearmanr)(a, b)[0])
    return value if math.isfinite(value) else None


def matrix(items: Sequence[Any], compare: Callable[[Any, Any], float | None]) -> list[list[float | None]]:
    """`compare` of every two items, symmetric, (n, n)."""
    found: list[list[float | None]] = [[None] * len(items) for _ in items]
    for i, first in enumerate(items):
        for j in range(i + 1):
            found[i][j] = found[j][i] = compare(first, items[j])
    return found


def pairwise(items: Sequence[Any], compare: Callable[[Any, Any], float | None]) -> list[float | None]:
    """`compare` of every two different items, n (n − 1) / 2 values: (0, 1), (0, 2), …, (1, 2), …"""
    return [compare(first, second) for i, first in enumerate(items) for second in items[i + 1 :]]


def summary(values: Iterable[float | None]) -> Summary:
    """Mean and least of what is defined."""
    known = [value for value in values if value is not None]
    return Summary(sum(known) / len(known), min(known), len(known)) if known else Summary(None, None, 0)
