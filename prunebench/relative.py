"""What is left of the dense model: relative scores, and their intervals. No torch here.

Everything here is also found in `prunebench.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prunebench.clustered import resampled_means, t_level
from prunebench.errors import BadParameter
from prunebench.paired import N_BOOT, check_level, checked_scores, percentiles

__all__ = ["Interval", "RelativeIntervals", "RelativeScore", "relative_intervals", "relative_score"]


class Interval(NamedTuple):
    """A confidence interval and how it was made.

    ``wilson``, ``bootstrap``, both also ``-clustered``, ``t``, ``hoeffding`` or ``none``.
    """

    low: float
    high: float
    method: str


class RelativeScore(NamedTuple):
    """What is left of the dense model, 1.0 being all of it; None where it is not defined."""

    plain: float | None
    chance_corrected: float | None


class RelativeIntervals(NamedTuple):
    """Intervals of a `RelativeScore`; None where it is not defined, or not told apart from undefined."""

    plain: Interval | None
    chance_corrected: Interval | None


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


def relative_intervals(
    scores: Mapping[str, Sequence[float]],
    dense: Mapping[str, Sequence[float]],
    chances: Mapping[str, float | None] | None = None,
    weights: Mapping[str, float] | None = None,
    lower_is_better: Collection[str] = (),
    log_scale: Collection[str] = (),
    clusters: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
    seed: int = 0,
    n_boot: int = N_BOOT,
) -> RelativeIntervals:
    """Intervals of `relative_score`, the dense model's scores being as uncertain as the pruned model's.

    Both models answered the same questions, which are resampled within tasks for both at once, by image or video where
    they share one; each resample gives a score of its own. Percentiles are taken at `prunebench.clustered.t_level`.

    Parameters
    ----------
    scores, dense : mapping of task → sequence of float, shape (n,)
        Per-question scores; entry i of both belongs to the same question. In `log_scale`, logarithms.
    chances, weights, lower_is_better, log_scale
        As for `relative_score`.
    clusters : mapping of task → sequence of str, shape (n,), optional
        What question i shares with others; a task without has questions that stand alone.

    Returns
    -------
    RelativeIntervals
        The method is ``none`` where the resamples do not differ. None where the score itself is, and where in more than
        (1 − level) / 2 of the resamples it has no denominator above zero, or a dense score that is not better than
        chance: such a ratio may be anything.

    Raises
    ------
    BadParameter
        Different tasks or numbers of questions, no tasks, or a weight missing or not above zero.

    References
    ----------
    A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    check_level(level)
    if not scores or set(scores) != set(dense):
        raise BadParameter("a relative score needs the same tasks, at least one, of both models")
    tasks = sorted(scores)
    shares, random = _weights(tasks, weights), np.random.RandomState(seed)
    plain, corrected, clustered = _Parts(n_boot), _Parts(n_boot), False
    for task in tasks:
        pair = [checked_scores(scores[task]), checked_scores(dense[task])]
        if pair[0].size != pair[1].size:
            raise BadParameter(f"task {task!r}: {pair[0].size} scores, but {pair[1].size} of the dense model")
        means, observed, units = resampled_means(np.stack(pair, axis=1), (clusters or {}).get(task, ()), random, n_boot)
        raw = np.vstack([observed, means])
        drawn = np.exp(raw) if task in log_scale else raw
        lower = task in lower_is_better
        part, whole = (drawn[:, 1], drawn[:, 0]) if lower else (drawn[:, 0], drawn[:, 1])
        plain.add(shares[task], part, whole, units)
        chance = _finite((chances or {}).get(task))
        if task in log_scale:
            chance = _log(chance)
        if chance is None:
            corrected.undefined = True
        else:
            above = (chance - raw if lower else raw - chance).T
            corrected.add(shares[task], above[0], above[1], units)
        clustered = clustered or units < pair[0].size
    method = "bootstrap-clustered" if clustered else "bootstrap"
    return RelativeIntervals(plain.interval(level, method), corrected.interval(level, method))


class _Parts:
    """A weighted sum of ratios over tasks: as observed (entry 0) and in each resample."""

    def __init__(self, n_boot: int) -> None:
        self.total = np.zeros(n_boot + 1)
        self.variances: list[float] = []
        self.units: list[int] = []
        self.undefined = False

    def add(self, share: float, part: np.ndarray, whole: np.ndarray, units: int) -> None:
        ratio = share * np.divide(part, whole, out=np.full(part.size, np.nan), where=whole > 0)
        self.total += ratio
        known = ratio[1:][np.isfinite(ratio[1:])]
        self.variances.append(float(known.var()) if known.size else 0.0)
        self.units.append(units)

    def interval(self, level: float, method: str) -> Interval | None:
        drawn = self.total[1:][np.isfinite(self.total[1:])]
        if self.undefined or not np.isfinite(self.total[0]):
            return None
        if drawn.size < (1 - (1 - level) / 2) * (self.total.size - 1):
            return None
        if not np.ptp(drawn) > 1e-12:  # one unit, or the two models answered all alike: nothing to tell scatter from
            return Interval(float(self.total[0]), float(self.total[0]), "none")
        return Interval(*percentiles(drawn, t_level(level, self.variances, self.units)), method)


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
