"""Which of many models differ: paired permutation tests, Holm's correction, tie groups, null bands. No torch here.

Everything here is also found in `prunebench.stats`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from prunebench.errors import BadParameter

__all__ = ["N_FLIPS", "NullBand", "holm", "null_band", "sign_flip_tests", "tie_groups"]

N_FLIPS = 9_999
"""Random sign flips of a permutation test: no p-value is below 1 / (N_FLIPS + 1)."""

FEW, COUNTED = 13, 32
"""Up to FEW units every flip is tried; up to COUNTED distinct sizes flips are drawn as counts."""


class NullBand(NamedTuple):
    """p-value of a score against `n` random draws, and the smallest p-value that so many draws allow."""

    p: float
    smallest: float
    n: int


def sign_flip_tests(units: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two-sided paired permutation tests that two models are exchangeable, one for each row.

    Entry (r, c) is what unit c (a question, or all questions about one image) adds to the difference of pair r in the
    statistic that is compared. If the two models are exchangeable on each unit, its sign is a fair coin. The p-value
    is the share of flips that give at least so large an absolute sum.

    Where all entries that are not zero have one size (0/1 scores of one task, no clusters) the sum's distribution is
    binomial, and this is exactly McNemar's test. Up to 13 such entries all flips are tried; else 9,999 random ones, and
    p = (1 + as large) / (1 + flips). All rows see the same flips where they cannot be counted.

    Parameters
    ----------
    units : array of float, shape (rows, units)
        Finite.
    seed : int
        The same units and seed always give the same p-values.

    Returns
    -------
    array of float, shape (rows,)
        1 where nothing differs.

    Raises
    ------
    BadParameter
        Not of that shape, or not finite.

    References
    ----------
    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations", Supplement to the
    Journal of the Royal Statistical Society 4 (1937).
    B. Phipson and G. K. Smyth, "Permutation p-values should never be zero", Statistical Applications in Genetics and
    Molecular Biology 9 (2010).
    """
    values = np.asarray(units, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise BadParameter("a permutation test needs finite contributions of shape (pairs, units)")
    found = np.ones(len(values))
    known: dict[bytes, float] = {}
    wide = []
    for row, own in enumerate(values):
        moved = np.sort(np.abs(own[own != 0]))
        if moved.size == 0:
            continue
        key = np.append(moved, abs(own.sum())).tobytes()
        sizes, counts = np.unique(moved, return_counts=True)
        if key in known:
            found[row] = known[key]
        elif sizes.size == 1 or moved.size <= FEW or sizes.size <= COUNTED:
            found[row] = known[key] = _counted(own, moved, sizes, counts, seed)
        else:
            wide.append(row)
    if wide:
        found[wide] = _flipped(values[wide], seed)
    return found


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values, shape (m,): the smallest times m, the next times m − 1, never decreasing.

    Rejecting where the adjusted value is at most 0.05 keeps the chance of any false rejection among the m at 5 %,
    whatever the dependence between the tests.

    Raises
    ------
    BadParameter
        A p-value outside [0, 1].

    References
    ----------
    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    values = np.asarray(pvalues, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise BadParameter("p-values must be a list of numbers between 0 and 1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def tie_groups(n: int, tests: Callable[[int, Sequence[int]], Sequence[float]], alpha: float = 0.05) -> list[int]:
    """Group 0, 1, ... of each of `n` models given best first: a group is its first model and what ties with that.

    The first model leads group 0, with every model whose difference to it has a Holm-adjusted p-value above `alpha`.
    The first of those left leads the next group, against the models left alone, and so on. A model is in one group; it
    may tie with models of a neighbouring group too, and a lower one of larger scatter may tie where a higher one does
    not.

    Parameters
    ----------
    n : int
        Number of models, best first.
    tests : function of (leader, others)
        The p-values, not adjusted, of the leader against each of the others.
    """
    groups, left, number = [0] * n, list(range(n)), 0
    while left:
        leader, others = left[0], left[1:]
        adjusted = holm(tests(leader, others)) if others else ()
        rest = [model for model, p in zip(others, adjusted, strict=True) if p <= alpha]
        for model in set(left) - set(rest):
            groups[model] = number
        left, number = rest, number + 1
    return groups


def null_band(score: float, draws: Sequence[float]) -> NullBand:
    """How unlikely so high a score is for a random plan: p = (1 + draws at least as high) / (1 + draws).

    Few draws cannot give a small p-value: with 5 none is below 1/6, and 19 are the fewest for 0.05.

    Raises
    ------
    BadParameter
        No draws, or a value that is no number.
    """
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite([score, *values]).all():
        raise BadParameter("a null band needs a finite score and at least one finite draw")
    reached = int((values >= score - 1e-12).sum())  # the same scores summed in another order are the same
    return NullBand((1 + reached) / (1 + values.size), 1 / (1 + values.size), int(values.size))


def _counted(own: np.ndarray, moved: np.ndarray, sizes: np.ndarray, counts: np.ndarray, seed: int) -> float:
    if sizes.size == 1:
        from scipy.stats import binomtest  # slow to import, and not every command tests

        return float(binomtest(int((own > 0).sum()), moved.size, 0.5).pvalue)
    least = abs(float(own.sum())) * (1 - 1e-9) - 1e-15  # sums in another order are the same sum
    if moved.size <= FEW:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=moved.size)))
        return float((np.abs(signs @ moved) >= least).mean())
    random = np.random.RandomState(seed)
    total = np.zeros(N_FLIPS)
    for size, count in zip(sizes, counts, strict=True):
        total += size * (2.0 * random.binomial(count, 0.5, size=N_FLIPS) - count)
    return float((1 + (np.abs(total) >= least).sum()) / (1 + N_FLIPS))


def _flipped(values: np.ndarray, seed: int) -> np.ndarray:
    random = np.random.RandomState(seed)
    least = np.abs(values.sum(axis=1)) * (1 - 1e-9) - 1e-15
    step = max(1, 4_000_000 // values.shape[1])  # flips at a time, so that memory stays small
    reached = np.zeros(len(values))
    for start in range(0, N_FLIPS, step):
        size = min(step, N_FLIPS - start)
        signs = 2.0 * random.randint(0, 2, size=(size, values.shape[1]), dtype=np.int8) - 1.0
        reached += (np.abs(values @ signs.T) >= least[:, None]).sum(axis=1)
    return (1 + reached) / (1 + N_FLIPS)
