"""How small a difference a suite can detect, from what was measured or beforehand. No torch here.

Everything here is also found in `prunebench.stats`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prunebench.clustered import standard_error
from prunebench.errors import BadParameter
from prunebench.paired import check_level, paired_values

__all__ = ["Detectable", "detectable_difference", "planned_difference", "planned_questions"]


class Detectable(NamedTuple):
    """The smallest true difference that a two-sided test finds with the power asked for.

    Attributes:
        difference: in units of the score, or of the weighted sum over tasks.
        error: standard error of the difference, clusters taken into account.
        design_effect: how many times larger its variance is for the clusters.
        n: questions.
    """

    difference: float
    error: float
    design_effect: float
    n: int


def detectable_difference(
    scores_a: Sequence[float] | Mapping[str, Sequence[float]],
    scores_b: Sequence[float] | Mapping[str, Sequence[float]],
    clusters: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    weights: Mapping[str, float] | None = None,
    level: float = 0.95,
    power: float = 0.8,
) -> Detectable | None:
    """Minimum detectable difference for these questions, from the scatter of two models' paired differences.

    (z_{(1 + level) / 2} + z_power) × standard error: 2.80 standard errors at 5 % and 80 % power. For two other models
    that differ in more answers it is larger, for two that differ in fewer it is smaller.

    Parameters
    ----------
    scores_a, scores_b, weights
        As for `paired_difference`.
    clusters : as the scores, optional
        What each question shares with others.

    Returns
    -------
    Detectable or None
        None where the differences have no scatter, or too few clusters to tell it.

    Raises
    ------
    BadParameter
        As `paired_difference`, or a power outside (0, 1).

    References
    ----------
    E. Miller, "Adding error bars to evals" (arXiv 2411.00640), section 5.
    """
    tasks, differences, groups, factors = paired_values(scores_a, scores_b, clusters, weights)
    z = sum(_z(level, power))
    variance = alone = 0.0
    for task in tasks:
        error, own = standard_error(differences[task], groups[task]), standard_error(differences[task])
        if error is None or own is None:
            return None
        variance += (factors[task] * error) ** 2
        alone += (factors[task] * own) ** 2
    largest = max(abs(factors[task]) * float(abs(differences[task]).max()) for task in tasks)
    if not variance > (1e-9 * largest) ** 2 or not alone > (1e-9 * largest) ** 2:  # but for rounding, none
        return None
    total = sum(values.size for values in differences.values())
    return Detectable(z * math.sqrt(variance), math.sqrt(variance), variance / alone, total)


def planned_difference(
    n: int, disagreement: float, design_effect: float = 1.0, level: float = 0.95, power: float = 0.8
) -> float | None:
    """Minimum detectable difference in the share of right answers, before anything is measured.

    The two models are expected to differ in whether they are right on a share `disagreement` of `n` questions. Solves
    n / design effect = (z_{(1 + level) / 2} sqrt(q) + z_power sqrt(q − d²))² / d² for d, with q the disagreement.

    Returns
    -------
    float or None
        None where not even a difference as large as the disagreement itself would be found.

    Raises
    ------
    BadParameter
        n below 1, a disagreement outside (0, 1], a design effect not above 0, or a power outside (0, 1).

    References
    ----------
    R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43
    (1987).
    """
    z_level, z_power = _z(level, power)
    _check_plan(disagreement, design_effect)
    if n < 1:
        raise BadParameter(f"a plan needs at least one question, got n={n}")
    s = n / design_effect
    if (inside := s + z_power**2 - z_level**2) < 0:
        return None
    found = math.sqrt(disagreement) * (math.sqrt(s) * z_level + z_power * math.sqrt(inside)) / (s + z_power**2)
    return found if found <= disagreement else None


def planned_questions(
    difference: float, disagreement: float, design_effect: float = 1.0, level: float = 0.95, power: float = 0.8
) -> int:
    """Questions needed to find `difference`, between 0 and `disagreement`: the inverse of `planned_difference`.

    Raises
    ------
    BadParameter
        A difference outside (0, disagreement], or as `planned_difference`.
    """
    z_level, z_power = _z(level, power)
    _check_plan(disagreement, design_effect)
    if not 0 < difference <= disagreement:
        raise BadParameter(f"a difference of {difference:g} needs a disagreement at least as large, and above 0")
    root = z_level * math.sqrt(disagreement) + z_power * math.sqrt(disagreement - difference**2)
    return math.ceil(design_effect * (root / difference) ** 2 - 1e-9)


@functools.cache
def _z(level: float, power: float) -> tuple[float, float]:
    from scipy.stats import norm

    check_level(level)
    if not 0 < power < 1:
        raise BadParameter(f"a power lies between 0 and 1, got {power:g}")
    return float(norm.ppf((1 + level) / 2)), float(norm.ppf(power))


def _check_plan(disagreement: float, effect: float) -> None:
    if not 0 < disagreement <= 1:
        raise BadParameter(f"a disagreement is a share above 0 and at most 1, got {disagreement:g}")
    if not effect > 0:
        raise BadParameter(f"a design effect lies above 0, got {effect:g}")
