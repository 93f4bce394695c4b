"""Questions that share an image or a video are drawn together: clustered bootstrap and standard errors. No torch here.

Answers about one image go right or wrong together, so n questions about few images say less than n about as many.
Everything that others need is also found in `prunebench.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prunebench.errors import BadParameter

__all__ = ["Resampled", "cluster_codes", "design_effect", "resampled_means", "standard_error", "t_level", "t_quantile"]

DRAWS_PER_COUNT = 8
"""Drawing how often one distinct value comes takes as long as drawing so many units one by one."""


class Resampled(NamedTuple):
    """Resampled means (n_boot, columns), the means as observed (columns,), and how many units were drawn."""

    means: np.ndarray
    observed: np.ndarray
    units: int


def cluster_codes(clusters: Sequence[str], n: int) -> np.ndarray | None:
    """Number 0, 1, ... of the cluster of each question, shape (n,); None where every question stands alone.

    Parameters
    ----------
    clusters : sequence of str, shape (n,) or empty
        What question i shares with others; empty says that none shares anything.
    n : int
        Number of questions.

    Raises
    ------
    BadParameter
        Neither empty nor one for each question.
    """
    if len(clusters) == 0:
        return None
    if len(clusters) != n:
        raise BadParameter(f"clusters must be one for each question, got {len(clusters)} for {n} questions")
    names, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return None if names.size == n else codes.reshape(-1)


def resampled_means(
    columns: np.ndarray, clusters: Sequence[str], random: np.random.RandomState, n_boot: int
) -> Resampled:
    """Means of resamples in which whole clusters are drawn with replacement, all columns by the same draw.

    A resample's mean is Σ sums / Σ sizes over the clusters drawn (a ratio estimator), so clusters may differ in size. A
    bootstrap of K units is too narrow by sqrt((K − 1) / K); deviations from the observed mean are stretched by the
    inverse. Intervals then take their quantiles at `t_level`.

    Parameters
    ----------
    columns : array of float, shape (n, columns)
        Row i belongs to question i: the scores of one model, of several, or their differences.
    clusters : sequence of str, shape (n,) or empty
        As for `cluster_codes`.

    Raises
    ------
    BadParameter
        As `cluster_codes`.

    References
    ----------
    A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    T. C. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015), section 3.2.
    """
    codes = cluster_codes(clusters, len(columns))
    units = _sums(columns, codes)
    count, observed = len(units), units[:, :-1].sum(axis=0) / len(columns)
    if count < 2:
        return Resampled(np.repeat(observed[None], n_boot, axis=0), observed, count)
    distinct, times = np.unique(units, axis=0, return_counts=True)
    drawn = np.empty((n_boot, units.shape[1]))
    if DRAWS_PER_COUNT * len(distinct) <= count:
        drawn[:] = random.multinomial(count, times / count, size=n_boot) @ distinct
    else:
        step = max(1, 4_000_000 // count)  # resamples at a time, so that memory stays small
        for start in range(0, n_boot, step):
            size = min(step, n_boot - start)
            chosen = random.randint(count, size=(size, count)) + count * np.arange(size)[:, None]
            drawn[start : start + size] = (
                np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count) @ units
            )
    means = drawn[:, :-1] / drawn[:, -1:]
    return Resampled(observed + (means - observed) * math.sqrt(count / (count - 1)), observed, count)


def t_quantile(level: float, variances: Sequence[float], units: Sequence[int]) -> float:
    """Half the width of an interval at `level`, in standard errors: Student's quantile, so that few units are enough.

    Degrees of freedom are those of Satterthwaite, (Σ V)² / Σ V² / (K − 1), with V the variance that each part of the
    statistic adds, from K units; the normal quantile where nothing says how many.
    """
    from scipy.special import ndtri, stdtrit  # inverses of the normal and of Student's distribution

    total = sum(variances)
    below = sum(value**2 / (count - 1) for value, count in zip(variances, units, strict=True) if count > 1)
    middle = (1 + level) / 2
    return float(stdtrit(total**2 / below, middle) if below > 0 else ndtri(middle))


def t_level(level: float, variances: Sequence[float], units: Sequence[int]) -> float:
    """The share of a bootstrap distribution that an interval at `level` has to hold: its normal quantile is Student's.

    The same as `t_quantile` otherwise.
    """
    from scipy.special import ndtr

    return float(2 * ndtr(t_quantile(level, variances, units)) - 1)


def standard_error(values: np.ndarray, clusters: Sequence[str] = ()) -> float | None:
    """Standard error of the mean of `values` (n,), questions of one cluster taken as dependent; None for one unit.

    sqrt(K / (K − 1) Σ_c (Σ_{i in c} (x_i − x̄))²) / n over K clusters; without clusters sd / sqrt(n).
    """
    codes = cluster_codes(clusters, len(values))
    sums = _sums((values - values.mean())[:, None], codes)[:, 0]
    if sums.size < 2:
        return None
    return math.sqrt(sums.size / (sums.size - 1) * float((sums**2).sum())) / len(values)


def design_effect(values: np.ndarray, clusters: Sequence[str] = ()) -> float:
    """How many times larger the variance of the mean is than if each question stood alone; 1 without clusters.

    n questions tell as much as n / design effect independent ones.
    """
    clustered, alone = standard_error(values, clusters), standard_error(values)
    return (clustered / alone) ** 2 if clustered is not None and alone else 1.0


def _sums(columns: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
    """Sum of each column by cluster, and the cluster's size as the last column, (clusters, columns + 1)."""
    sized = np.column_stack([columns, np.ones(len(columns))])
    if codes is None:
        return sized
    return np.stack([np.bincount(codes, weights=column) for column in sized.T], axis=1)
