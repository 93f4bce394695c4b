"""From scores to layers. Scores and rules are apart, so that every score can be crossed with every rule.

All rules take scores where **higher means removed earlier**, never touch protected layers, and break ties towards the
deeper layer. Add a rule by adding a function to `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunebench.errors import BadParameter, BudgetError, UnknownName

__all__ = ["RULES", "contiguous", "independent", "select_layers", "spaced"]

Rule = Callable[..., list[int]]


def independent(scores: np.ndarray, n: int, allowed: Sequence[int], **_: object) -> list[int]:
    """The `n` allowed layers with the highest scores, each on its own merit."""
    return sorted(sorted(allowed, key=lambda layer: (-scores[layer], -layer))[:n])


def contiguous(scores: np.ndarray, n: int, allowed: Sequence[int], **_: object) -> list[int]:
    """The window of `n` neighbouring allowed layers with the highest sum of scores; of equals, the deepest."""
    if n == 0:
        return []
    free = set(allowed)
    windows = [range(a, a + n) for a in sorted(free) if all(layer in free for layer in range(a, a + n))]
    if not windows:
        raise BudgetError(f"no {n} neighbouring layers are free to go: ask for fewer, or use select=independent")
    # Summed in one order for every window, so that equal scores give equal sums and ties are real ties.
    return list(max(windows, key=lambda window: (float(np.sum(scores[list(window)])), window[0])))


def spaced(scores: np.ndarray, n: int, allowed: Sequence[int], min_gap: int = 2, **_: object) -> list[int]:
    """The `n` highest-scored layers whose ids lie at least `min_gap` apart (greedy, as exact as its score order)."""
    if min_gap < 1:
        raise BadParameter(f"min_gap must be at least 1, got {min_gap}")
    chosen: list[int] = []
    for layer in sorted(allowed, key=lambda layer: (-scores[layer], -layer)):
        if len(chosen) == n:
            break
        if all(abs(layer - other) >= min_gap for other in chosen):
            chosen.append(layer)
    if len(chosen) < n:
        raise BudgetError(
            f"only {len(chosen)} layers fit with a gap of {min_gap}, {n} were asked for: lower min_gap or the budget"
        )
    return sorted(chosen)


RULES: dict[str, Rule] = {"independent": independent, "contiguous": contiguous, "spaced": spaced}


def select_layers(
    scores: Sequence[float] | np.ndarray,
    n: int,
    *,
    rule: str = "independent",
    protected: Sequence[int] = (),
    min_gap: int = 2,
) -> list[int]:
    """Original ids of the `n` layers to remove, ascending.

    Args:
        scores: (L,), higher means removed earlier.
        n: how many.
        rule: a name from `RULES`.
        protected: layers that must stay.
        min_gap: for ``spaced``.

    Raises:
        BudgetError: more layers asked for than may go.
        BadParameter: a score that is not a number.
        UnknownName: no such rule.
    """
    values = np.asarray(scores, dtype=np.float64)
    if rule not in RULES:
        raise UnknownName("selection rule", rule, RULES)
    if not np.isfinite(values).all():
        raise BadParameter(f"the score of layer {int(np.flatnonzero(~np.isfinite(values))[0])} is not a finite number")
    allowed = [layer for layer in range(len(values)) if layer not in set(protected)]
    if n > len(allowed):
        kept = sorted(set(protected) & set(range(len(values))))
        raise BudgetError(
            f"{n} layers asked for, but only {len(allowed)} of {len(values)} may go "
            f"(protected: {kept}): lower the budget"
        )
    return [int(layer) for layer in RULES[rule](values, n, allowed, min_gap=min_gap)]
