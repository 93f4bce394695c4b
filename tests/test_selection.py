"""Selection rules against brute force over all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunebench.errors import BadParameter, BudgetError, UnknownName
from prunebench.selection import RULES, select_layers


def instances(count: int = 60):
    """Random scores with many ties, a budget and protected layers. Integers, so that sums are exact."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        n_layers = int(rng.integers(4, 11))
        scores = rng.integers(0, 4, n_layers).astype(float)
        protected = sorted(rng.choice(n_layers, int(rng.integers(0, 3)), replace=False).tolist())
        yield scores, int(rng.integers(1, n_layers - len(protected) + 1)), protected


def best(scores: np.ndarray, choices: list[tuple[int, ...]]) -> list[int]:
    """The choice of the highest sum; of equals, the one whose layers lie deepest, deepest first."""
    return list(max(choices, key=lambda choice: (scores[list(choice)].sum(), tuple(sorted(choice, reverse=True)))))


def test_independent_is_the_best_of_all_subsets():
    for scores, n, protected in instances():
        free = [layer for layer in range(len(scores)) if layer not in protected]
        expected = best(scores, list(itertools.combinations(free, n)))
        assert select_layers(scores, n, protected=protected) == expected


def test_contiguous_is_the_best_of_all_windows():
    fitted = refused = 0
    for scores, n, protected in instances():
        windows = [tuple(range(a, a + n)) for a in range(len(scores) - n + 1)]
        windows = [window for window in windows if not set(window) & set(protected)]
        if windows:
            assert select_layers(scores, n, rule="contiguous", protected=protected) == best(scores, windows)
            fitted += 1
        else:
            with pytest.raises(BudgetError, match=f"no {n} neighbouring layers"):
                select_layers(scores, n, rule="contiguous", protected=protected)
            refused += 1
    assert fitted > 20 and refused > 5


@pytest.mark.parametrize("min_gap", [1, 2, 3])
def test_spaced_takes_the_next_best_layer_that_keeps_the_gap(min_gap):
    fitted = refused = 0
    for scores, n, protected in instances():
        chosen: list[int] = []
        free = [layer for layer in range(len(scores)) if layer not in protected]
        while len(chosen) < n:
            fit = [layer for layer in free if all(abs(layer - other) >= min_gap for other in chosen)]
            if not fit:
                break
            top = max(scores[layer] for layer in fit)
            chosen.append(max(layer for layer in fit if scores[layer] == top))
        if len(chosen) == n:
            assert select_layers(scores, n, rule="spaced", protected=protected, min_gap=min_gap) == sorted(chosen)
            fitted += 1
        else:
            with pytest.raises(BudgetError, match=f"only {len(chosen)} layers fit with a gap of {min_gap}"):
                select_layers(scores, n, rule="spaced", protected=protected, min_gap=min_gap)
            refused += 1
    assert fitted > 5 and (refused > 5 or min_gap == 1)


def test_with_a_gap_of_one_spaced_is_independent():
    for scores, n, protected in instances(20):
        assert select_layers(scores, n, rule="spaced", protected=protected, min_gap=1) == select_layers(
            scores, n, protected=protected
        )


@pytest.mark.parametrize(
    ("rule", "expected"), [("independent", [4, 5, 6, 7]), ("contiguous", [4, 5, 6, 7]), ("spaced", [1, 3, 5, 7])]
)
def test_equal_scores_go_deeper_first(rule, expected):
    assert select_layers([0.1] * 8, 4, rule=rule) == expected


@pytest.mark.parametrize("rule", RULES)
def test_nothing_asked_is_nothing_removed(rule):
    assert select_layers([3.0, 1.0, 2.0], 0, rule=rule) == []


@pytest.mark.parametrize("rule", RULES)
def test_protected_layers_stay_whatever_they_score(rule):
    scores = np.array([9.0, 1.0, 1.0, 1.0, 1.0, 9.0])
    chosen = select_layers(scores, 2, rule=rule, protected=(0, 5))
    assert len(chosen) == 2 and not {0, 5} & set(chosen)


@pytest.mark.parametrize("rule", RULES)
def test_more_than_may_go_is_refused(rule):
    with pytest.raises(BudgetError, match=r"7 layers asked for, but only 6 of 8 may go \(protected: \[0, 7\]\)"):
        select_layers(np.zeros(8), 7, rule=rule, protected=(0, 7))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_names_its_layer(value):
    with pytest.raises(BadParameter, match="score of layer 2 "):
        select_layers([0.0, 1.0, value, 3.0], 1)


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UnknownName) as caught:
        select_layers([0.0, 1.0], 1, rule="contigous")
    assert caught.value.suggestion == "contiguous" and "did you mean 'contiguous'?" in str(caught.value)


@pytest.mark.parametrize("min_gap", [0, -1])
def test_a_gap_below_one_is_refused(min_gap):
    with pytest.raises(BadParameter, match="min_gap must be at least 1"):
        select_layers([0.0, 1.0], 1, rule="spaced", min_gap=min_gap)
