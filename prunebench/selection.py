"""From scores to layers. Scores and rules are apart, so that every score can be crossed with every rule.

All rules take scores where **higher means removed earlier**, never touch protected layers, and break ties towards the
deeper layer. Add a rule by adding a function to `RULES`.

What a rule may look at, besides the score of every layer:

- ``windows``: (L+1, L+1), entry [a, b] with a < b is the score of removing layers [a, b) as one block; NaN where a
  method knows none, and then the block is no candidate. Without windows, a block's score is the mean of its layers'.
- ``rescore``: from the layers removed so far, in order of removal, to the scores (L,) of those that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunebench.errors import BadParameter, BudgetError, UnknownName

__all__ = [
    "READS_WINDOWS",
    "RULES",
    "Triplet",
    "contiguous",
    "global_threshold",
    "greedy",
    "independent",
    "removal_order",
    "run_scores",
    "select_layers",
    "spaced",
    "triplet",
    "triplets",
]

Rule = Callable[..., list[int]]
Rescore = Callable[[tuple[int, ...]], np.ndarray]


def independent(scores: np.ndarray, n: int, allowed: Sequence[int], **_: object) -> list[int]:
    """The `n` allowed layers with the highest scores, each on its own merit."""
    return _best_first(scores, allowed)[:n]


def contiguous(
    scores: np.ndarray, n: int, allowed: Sequence[int], *, windows: np.ndarray | None = None, **_: object
) -> list[int]:
    """The block of `n` neighbouring allowed layers with the highest score; of equals, the deepest."""
    if n == 0:
        return []
    free = set(allowed)
    starts = [a for a in sorted(free) if all(layer in free for layer in range(a, a + n))]
    blocks = [(_block_score(scores, windows, a, a + n), a) for a in starts]
    blocks = [block for block in blocks if not np.isnan(block[0])]
    if not blocks:
        raise BudgetError(f"no {n} neighbouring layers are free to go: ask for fewer, or use select=independent")
    start = max(blocks)[1]
    return list(range(start, start + n))


def spaced(scores: np.ndarray, n: int, allowed: Sequence[int], *, min_gap: int = 2, **_: object) -> list[int]:
    """`n` layers whose ids lie at least `min_gap` apart: best first, passing over one that would leave no room.

    Of all choices that fit, this is the one with the best first layer, then the best second, and so on.
    """
    if min_gap < 1:
        raise BadParameter(f"min_gap must be at least 1, got {min_gap}")
    most = _room(allowed, (), min_gap)
    if n > most:
        raise BudgetError(
            f"only {most} layers fit with a gap of {min_gap}, {n} were asked for: lower min_gap or the budget"
        )
    chosen: list[int] = []
    for layer in _best_first(scores, allowed):
        if len(chosen) == n:
            break
        if all(abs(layer - other) >= min_gap for other in chosen):
            rest = n - len(chosen) - 1
            if rest == 0 or _room(allowed, (*chosen, layer), min_gap) >= rest:
                chosen.append(layer)
    return chosen


def greedy(
    scores: np.ndarray, n: int, allowed: Sequence[int], *, rescore: Rescore | None = None, **_: object
) -> list[int]:
    """One layer at a time, the best of those that remain, scored anew after each removal where the method can."""
    removed: list[int] = []
    current = scores
    while len(removed) < n:
        if removed and rescore is not None:
            current = np.asarray(rescore(tuple(removed)), dtype=np.float64)
            if current.shape != scores.shape:
                raise BadParameter(f"rescore() must return {len(scores)} values, got shape {current.shape}")
        free = [layer for layer in allowed if layer not in removed and not np.isnan(current[layer])]
        if not free:
            raise BudgetError(
                f"after {len(removed)} layers no other one has a score, {n} were asked for: "
                "ask for fewer, or use select=independent"
            )
        removed.append(_best_first(current, free)[0])
    return removed


def global_threshold(
    scores: np.ndarray,
    n: int,
    allowed: Sequence[int],
    *,
    epsilon: float | None = None,
    warn: Callable[[str], None] | None = None,
    **_: object,
) -> list[int]:
    """Every allowed layer whose score exceeds ``epsilon`` × the highest score of all layers, however many they are.

    Without an epsilon the threshold is the one that meets the budget: the same layers as ``independent``. Where
    nothing is asked (n = 0), nothing goes.
    """
    tell = warn or (lambda _line: None)
    order = _best_first(scores, allowed)
    if n == 0:
        return []
    if epsilon is None:
        if n < len(order) and scores[order[n - 1]] == scores[order[n]]:
            tell(
                f"global_threshold: layers {order[n - 1]} and {order[n]} are tied, so no threshold removes exactly {n}"
            )
        return order[:n]
    if not (np.isfinite(epsilon) and epsilon >= 0):
        raise BadParameter(f"epsilon must be a finite number >= 0, got {epsilon:g}")
    highest = float(scores.max())
    if highest <= 0:
        raise BadParameter(
            f"epsilon is a share of the highest score, which is {highest:.4g}: "
            "it has to be above 0; leave epsilon out to meet the budget"
        )
    gone = [layer for layer in order if scores[layer] > epsilon * highest]
    if len(gone) == len(scores):
        raise BudgetError(f"epsilon={epsilon:g} removes all {len(scores)} layers: raise it")
    if len(gone) != n:
        tell(f"global_threshold: epsilon={epsilon:g} removes {len(gone)} layers, {n} were asked for")
    return gone


@dataclass(frozen=True)
class Triplet:
    """Neighbouring layers of which one goes; `freeze` is None for a pair."""

    drop: int
    keep: int
    freeze: int | None = None


def triplets(
    scores: np.ndarray, n: int, allowed: Sequence[int], windows: np.ndarray | None = None
) -> tuple[list[Triplet], bool]:
    """`n` non-overlapping triplets (i, i+1, i+2), best block score first; where they run out, pairs (i, i+1).

    Of i and i+1 the one with the higher score of its own goes (the deeper one of equals); i+2 always stays.

    Returns:
        The triplets in the order taken, at most `n`, and whether there were enough.

    Source: the released selection of INTERLACE (github.com/pmadinei/Interlace, CVPR 2026).
    """
    free, taken, found = set(allowed), set(), []
    for width in (3, 2):
        starts = [
            (_block_score(scores, windows, a, a + width), a)
            for a in range(len(scores) - width + 1)
            if free & {a, a + 1}
        ]
        known = [start for start in starts if not np.isnan(start[0])]  # NaN among others would unsettle the sorting
        for _, a in sorted(known, reverse=True):
            if len(found) == n:
                break
            block = range(a, a + width)
            if taken & set(block):
                continue
            drop = _best_first(scores, sorted(free & {a, a + 1}))[0]
            found.append(Triplet(drop, a if drop == a + 1 else a + 1, a + 2 if width == 3 else None))
            taken |= set(block)
    return found, len(found) == n


def triplet(
    scores: np.ndarray, n: int, allowed: Sequence[int], *, windows: np.ndarray | None = None, **_: object
) -> list[int]:
    """One layer out of each of `n` non-overlapping triplets or pairs, see `triplets`."""
    found, enough = triplets(scores, n, allowed, windows)
    if not enough:
        raise BudgetError(
            f"only {len(found)} triplets and pairs of layers fit, {n} layers were asked for: "
            "ask for fewer, or use select=independent"
        )
    return [one.drop for one in found]


RULES: dict[str, Rule] = {
    "independent": independent,
    "contiguous": contiguous,
    "triplet": triplet,
    "spaced": spaced,
    "greedy": greedy,
    "global_threshold": global_threshold,
}


READS_WINDOWS = frozenset({"contiguous", "triplet", "greedy"})
"""Rules for which it is worth scoring blocks."""


def select_layers(scores: Sequence[float] | np.ndarray, n: int, **options: object) -> list[int]:
    """Original ids of the `n` layers to remove, ascending; takes what `removal_order` takes."""
    return sorted(removal_order(scores, n, **options))


def removal_order(
    scores: Sequence[float] | np.ndarray,
    n: int,
    *,
    rule: str = "independent",
    protected: Sequence[int] = (),
    min_gap: int = 2,
    epsilon: float | None = None,
    windows: np.ndarray | None = None,
    rescore: Rescore | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[int]:
    """Original ids of the `n` layers to remove, in the order in which the rule takes them.

    Args:
        scores: (L,), higher means removed earlier.
        n: how many.
        rule: a name from `RULES`.
        protected: layers that must stay.
        min_gap: for ``spaced``.
        epsilon: for ``global_threshold``.
        windows: (L+1, L+1), scores of whole blocks, for ``contiguous`` and ``triplet``.
        rescore: scores of what remains after some removals, for ``greedy``.
        warn: called with a line that the user should see.

    Raises:
        BudgetError: more layers asked for than may go, or than the rule can find.
        BadParameter: a score that is not a number, windows of another shape, an option out of range.
        UnknownName: no such rule.
    """
    values = np.asarray(scores, dtype=np.float64)
    if rule not in RULES:
        raise UnknownName("selection rule", rule, RULES)
    if not np.isfinite(values).all():
        raise BadParameter(f"the score of layer {int(np.flatnonzero(~np.isfinite(values))[0])} is not a finite number")
    if windows is not None:
        windows = np.asarray(windows, dtype=np.float64)
        if windows.shape != (len(values) + 1,) * 2:
            raise BadParameter(
                f"windows() must return shape {(len(values) + 1,) * 2} for {len(values)} layers, got {windows.shape}"
            )
        if np.isinf(windows).any():
            start, stop = np.argwhere(np.isinf(windows))[0]
            raise BadParameter(f"the score of block [{start}, {stop}) is infinite: NaN stands for no score")
    allowed = [layer for layer in range(len(values)) if layer not in set(protected)]
    if n > len(allowed):
        kept = sorted(set(protected) & set(range(len(values))))
        raise BudgetError(
            f"{n} layers asked for, but only {len(allowed)} of {len(values)} may go "
            f"(protected: {kept}): lower the budget"
        )
    order = RULES[rule](
        values, n, allowed, min_gap=min_gap, epsilon=epsilon, windows=windows, rescore=rescore, warn=warn
    )
    return [int(layer) for layer in order]


def run_scores(windows: np.ndarray, removed: Sequence[int]) -> np.ndarray:
    """Score of each layer once `removed` are gone, from windows: that of the run of removed layers it would complete.

    Args:
        windows: (L+1, L+1), entry [a, b] is the score of removing layers [a, b).
        removed: layers that are gone.

    Returns:
        (L,), NaN for the removed layers.
    """
    n_layers, gone = len(windows) - 1, set(removed)
    values = np.full(n_layers, np.nan)
    for layer in set(range(n_layers)) - gone:
        start, stop = layer, layer + 1
        while start - 1 in gone:
            start -= 1
        while stop in gone:
            stop += 1
        values[layer] = windows[start, stop]
    return values


def _best_first(scores: np.ndarray, layers: Sequence[int]) -> list[int]:
    return sorted(layers, key=lambda layer: (-scores[layer], -layer))


def _block_score(scores: np.ndarray, windows: np.ndarray | None, start: int, stop: int) -> float:
    if windows is not None:
        return float(windows[start, stop])
    # Summed in one order for every block, so that equal scores give equal sums and ties are real ties.
    return float(np.sum(scores[start:stop])) / (stop - start)


def _room(allowed: Sequence[int], chosen: Sequence[int], min_gap: int) -> int:
    """How many further layers fit beside `chosen` with the gap; taking the first that fits is best possible."""
    last, count = -min_gap, 0
    for layer in sorted(allowed):
        if layer - last >= min_gap and all(abs(layer - other) >= min_gap for other in chosen):
            last, count = layer, count + 1
    return count
