"""Intervals, relative scores and paired comparisons from per-question scores. No torch and no pandas here.

Scores are plain numbers, one per question, mostly 0 (wrong) or 1 (right). What cannot be computed is None or says so in
its method name; it is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prunebench.errors import BadParameter
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
)

__all__ = [
    "Difference",
    "Flips",
    "Interval",
    "RelativeScore",
    "flips",
    "is_binary",
    "mcnemar",
    "mean_interval",
    "paired_difference",
    "relative_score",
    "wilson",
]


class Interval(NamedTuple):
    """A confidence interval and how it was made (``wilson``, ``bootstrap``, ``t``, ``hoeffding`` or ``none``)."""

    low: float
    high: float
    method: str


class RelativeScore(NamedTuple):
    """What is left of the dense model, 1.0 being all of it; None where it is not defined."""

    plain: float | None
    chance_corrected: float | None


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


def mean_interval(scores: Sequence[float], level: float = 0.95, method: str = "auto", seed: int = 0) -> Interval:
    """Confidence interval of the mean of per-question scores.

    ``auto`` takes Wilson for 0/1 scores and else the percentile bootstrap. A bootstrap of values that are all equal has
    no width and would claim certainty; there, and for a single value, scores within [0, 1] get Hoeffding's bound
    mean ± sqrt(ln(2 / (1 − level)) / 2n), and any others the method name ``none``.

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

    Raises
    ------
    BadParameter
        No scores, a score that is no number, ``wilson`` for scores other than 0 and 1, or an unknown method.

    References
    ----------
    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    W. Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 58 (1963).
    """
    values = checked_scores(scores)
    check_level(level)
    if method not in ("auto", "wilson", "bootstrap", "t"):
        raise BadParameter(f"unknown interval method {method!r}; known: auto, wilson, bootstrap, t")
    binary = is_binary(values)
    if method == "wilson" and not binary:
        raise BadParameter("the Wilson interval is for scores of 0 and 1 only; use method='bootstrap'")
    if binary and method in ("auto", "wilson"):
        return Interval(*wilson(int(values.sum()), values.size, level), "wilson")
    if values.size < 2 or np.ptp(values) == 0:
        return _interval_without_spread(values, level)
    if method == "t":
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
        return Interval(float(values.mean()) - half, float(values.mean()) + half, "t")
    means = bootstrap_means(values, np.random.RandomState(seed), N_BOOT)
    return Interval(*percentiles(means, level), "bootstrap")


def relative_score(
    scores: Mapping[str, float | None],
    dense: Mapping[str, float | None],
    chances: Mapping[str, float | None] | None = None,
    weights: Mapping[str, float] | None = None,
    lower_is_better: Collection[str] = (),
    log_scale: Collection[str] = (),
) -> RelativeScore:
    """How much of the dense model's score is left, averaged over tasks.

    With weights w that sum to one over the tasks::

        plain             Σ w · score / dense                          (dense / score where lower is better)
        chance-corrected  Σ w · (score − chance) / (dense − chance)

    At four choices a model that guesses still has a plain score of 0.25 / dense; the corrected one is then 0, and below
    0 for a model that does worse than guessing. Neither is clipped.

    A perplexity is an exponential: on tasks in `log_scale` the corrected score is taken of logarithms,
    (ln score − ln chance) / (ln dense − ln chance), the share that is left of what the dense model saves in nats per
    token over a uniform guess (whose perplexity, the chance level, is the size of the vocabulary).

    Parameters
    ----------
    scores, dense, chances : mapping of task → score
        The tasks are those of `scores` and `dense` together.
    weights : mapping of task → weight > 0, optional
        Equal weights if absent.
    lower_is_better : collection of task names
        Tasks whose metric is an error or a perplexity.
    log_scale : collection of task names
        Tasks whose scores are exponentials of a mean, all above zero.

    Returns
    -------
    RelativeScore
        `plain` is None where a task's score or dense score is missing or not above zero for a denominator;
        `chance_corrected` also where a chance is missing or the dense model is not better than chance.

    Raises
    ------
    BadParameter
        A weight is missing or not above zero.
    """
    tasks = sorted({*scores, *dense})
    shares = _weights(tasks, weights)
    plain: float | None = 0.0 if tasks else None
    corrected: float | None = 0.0 if tasks and chances is not None else None
    for task in tasks:
        score, reference = _finite(scores.get(task)), _finite(dense.get(task))
        if score is None or reference is None:
            return RelativeScore(None, None)
        lower = task in lower_is_better
        part, whole = (reference, score) if lower else (score, reference)
        plain = plain + shares[task] * part / whole if plain is not None and whole > 0 else None
        chance = _finite(chances.get(task)) if chances is not None else None
        if task in log_scale:
            score, reference, chance = _log(score), _log(reference), _log(chance)
        if score is None or reference is None:
            return RelativeScore(plain, None)
        if corrected is None or chance is None or (reference >= chance if lower else reference <= chance):
            corrected = None
        else:
            corrected += shares[task] * (score - chance) / (reference - chance)
    return RelativeScore(plain, corrected)


def _interval_without_spread(values: np.ndarray, level: float) -> Interval:
    mean = float(values.mean())
    if not ((values >= 0) & (values <= 1)).all():
        return Interval(mean, mean, "none")
    half = math.sqrt(math.log(2 / (1 - level)) / (2 * values.size))
    return Interval(max(0.0, mean - half), min(1.0, mean + half), "hoeffding")


def _weights(tasks: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return {task: 1 / len(tasks) for task in tasks}
    if wrong := [task for task in tasks if not weights.get(task, 0.0) > 0]:
        raise BadParameter(f"task {wrong[0]!r} has no weight above 0")
    total = sum(weights[task] for task in tasks)
    return {task: weights[task] / total for task in tasks}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None and value > 0 else None
