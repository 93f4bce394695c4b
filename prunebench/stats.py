"""Intervals, relative scores and paired comparisons from per-question scores. No torch and no pandas here.

Scores are plain numbers, one per question, mostly 0 (wrong) or 1 (right). What cannot be computed is None or says so in
its method name; it is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunebench.clustered import cluster_codes, design_effect, resampled_means, standard_error, t_level
from prunebench.errors import BadParameter
from prunebench.multiple import NullBand, holm, null_band, sign_flip_tests, tie_groups
from prunebench.paired import (
    N_BOOT,
    Difference,
    Flips,
    bootstrap_means,
    check_level,
    checked_scores,
    flips,
    is_binary,
    mcnemar,
    paired_difference,
    percentiles,
    whole_marks,
)
from prunebench.power import Detectable, detectable_difference, planned_difference, planned_questions
from prunebench.relative import Interval, RelativeIntervals, RelativeScore, relative_intervals, relative_score

__all__ = [
    "Detectable",
    "Difference",
    "Flips",
    "Interval",
    "NullBand",
    "RelativeIntervals",
    "RelativeScore",
    "design_effect",
    "detectable_difference",
    "flips",
    "holm",
    "is_binary",
    "mcnemar",
    "mean_interval",
    "null_band",
    "paired_difference",
    "planned_difference",
    "planned_questions",
    "relative_intervals",
    "relative_score",
    "sign_flip_tests",
    "standard_error",
    "tie_groups",
    "whole_marks",
    "wilson",
]


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    With p = successes / n and z the normal quantile of (1 + level) / 2::

        (p + z²/2n ± z sqrt(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    Unlike the normal approximation it stays inside [0, 1] and has width where all answers are right or all wrong.

    Parameters
    ----------
    successes, n : int
        0 <= successes <= n, n >= 1.
    level : float
        Confidence level in (0, 1).

    Returns
    -------
    low, high : float
        Shares in [0, 1].

    Raises
    ------
    BadParameter
        Counts or level outside these ranges.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    from scipy.stats import binomtest  # slow to import, and not every command computes an interval

    check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise BadParameter(f"an interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    interval = binomtest(int(successes), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(
    scores: Sequence[float],
    level: float = 0.95,
    method: str = "auto",
    seed: int = 0,
    clusters: Sequence[str] = (),
    n_boot: int = N_BOOT,
) -> Interval:
    """Confidence interval of the mean of per-question scores.

    ``auto`` takes Wilson for 0/1 scores and else the percentile bootstrap. A bootstrap of values that are all equal has
    no width and would claim certainty; there, and for a single value, scores within [0, 1] get Hoeffding's bound
    mean ± sqrt(ln(2 / (1 − level)) / 2n), and any others the method name ``none``.

    Where questions share an image or a video, ``bootstrap`` resamples these with all their questions
    (``bootstrap-clustered``, see `prunebench.clustered`), and for 0/1 scores ``auto`` and ``wilson`` take Wilson's
    interval of n / design effect answers, the effect being at least 1, with Student's quantile of K − 1 degrees of
    freedom (``wilson-clustered``): near 0 and 1 the bootstrap is too narrow. Hoeffding's bound then has
    (Σ sizes)² / Σ sizes² for n.

    Parameters
    ----------
    scores : sequence of float, shape (n,)
        n >= 1, finite.
    level : float
        Confidence level in (0, 1).
    method : {"auto", "wilson", "bootstrap", "t"}
        ``t`` is Student's interval mean ± t sd / sqrt(n).
    seed : int
        Of the bootstrap: the same scores always give the same interval.
    clusters : sequence of str, shape (n,) or empty
        What question i shares with others; empty: each stands alone.
    n_boot : int
        Number of resamples.

    Raises
    ------
    BadParameter
        No scores, a score that is no number, ``wilson`` for scores other than 0 and 1, an unknown method, clusters that
        are not one for each question, or clusters for ``t``, which knows of none.

    References
    ----------
    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", Survey Methodology 24 (1998), on n / design effect.
    W. Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 58 (1963).
    """
    values = checked_scores(scores)
    check_level(level)
    if method not in ("auto", "wilson", "bootstrap", "t"):
        raise BadParameter(f"unknown interval method {method!r}; known: auto, wilson, bootstrap, t")
    codes, binary = cluster_codes(clusters, values.size), is_binary(values)
    if method == "wilson" and not binary:
        raise BadParameter("the Wilson interval is for scores of 0 and 1 only; use method='bootstrap'")
    if codes is not None:
        if method == "t":
            raise BadParameter("the t interval takes questions that stand alone; use method='bootstrap'")
        if binary and method != "bootstrap":
            return _clustered_wilson(values, clusters, codes, level)
        return _clustered(values, clusters, codes, level, seed, n_boot)
    if binary and method in ("auto", "wilson"):
        return Interval(*wilson(int(values.sum()), values.size, level), "wilson")
    if values.size < 2 or np.ptp(values) == 0:
        return _interval_without_spread(values, level)
    if method == "t":
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
        return Interval(float(values.mean()) - half, float(values.mean()) + half, "t")
    means = bootstrap_means(values, np.random.RandomState(seed), n_boot)
    return Interval(*percentiles(means, level), "bootstrap")


def _clustered_wilson(values: np.ndarray, clusters: Sequence[str], codes: np.ndarray, level: float) -> Interval:
    from scipy.special import stdtrit

    units, share = int(codes.max()) + 1, float(values.mean())
    if not standard_error(values, clusters):
        return _interval_without_spread(values, level, _effective(codes))
    count = values.size / max(1.0, design_effect(values, clusters))
    z = float(stdtrit(units - 1, (1 + level) / 2))
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), "wilson-clustered")


def _clustered(
    values: np.ndarray, clusters: Sequence[str], codes: np.ndarray, level: float, seed: int, n_boot: int
) -> Interval:
    random = np.random.RandomState(seed)
    means, observed, units = resampled_means(values[:, None], clusters, random, n_boot)
    if units < 2 or np.ptp(means) <= 1e-12 * max(1.0, abs(float(observed[0]))):
        return _interval_without_spread(values, level, _effective(codes))
    low, high = percentiles(means[:, 0], t_level(level, [float(means.var())], [units]))
    if ((values >= 0) & (values <= 1)).all():
        low, high = max(0.0, low), min(1.0, high)
    return Interval(low, high, "bootstrap-clustered")


def _interval_without_spread(values: np.ndarray, level: float, count: float | None = None) -> Interval:
    mean = float(values.mean())
    if not ((values >= 0) & (values <= 1)).all():
        return Interval(mean, mean, "none")
    half = math.sqrt(math.log(2 / (1 - level)) / (2 * (values.size if count is None else count)))
    return Interval(max(0.0, mean - half), min(1.0, mean + half), "hoeffding")


def _effective(codes: np.ndarray) -> float:
    sizes = np.bincount(codes)
    return float(sizes.sum() ** 2 / (sizes**2).sum())
