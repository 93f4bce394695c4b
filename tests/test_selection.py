"""Selection rules against brute force over all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunebench.errors import BadParameter, BudgetError, UnknownName
from prunebench.selection import RULES, removal_order, run_scores, select_layers, triplets


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
def test_spaced_is_the_best_first_of_all_choices_that_keep_the_gap(min_gap):
    """The choice whose sorted scores come first, layer by layer; found wherever there is one."""
    fitted = refused = 0
    for scores, n, protected in instances():
        free = [layer for layer in range(len(scores)) if layer not in protected]
        fit = [
            choice
            for choice in itertools.combinations(free, n)
            if all(b - a >= min_gap for a, b in itertools.pairwise(choice))
        ]
        if fit:
            expected = max(fit, key=lambda c: sorted(((scores[layer], layer) for layer in c), reverse=True))
            assert select_layers(scores, n, rule="spaced", protected=protected, min_gap=min_gap) == list(expected)
            fitted += 1
        else:
            with pytest.raises(BudgetError, match=f"layers fit with a gap of {min_gap}, {n} were asked for"):
                select_layers(scores, n, rule="spaced", protected=protected, min_gap=min_gap)
            refused += 1
    assert fitted > 5 and (min_gap == 1 or refused > 5)


def test_spaced_leaves_out_the_best_layer_where_it_would_take_the_room():
    assert select_layers([0.1, 0.9, 0.1, 0.2, 0.1], 2, rule="spaced") == [1, 3]
    assert select_layers([0.1, 0.9, 0.1, 0.2, 0.1], 3, rule="spaced") == [0, 2, 4]


def random_windows(rng: np.random.Generator, n_layers: int, values: int = 6, gaps: float = 0.0) -> np.ndarray:
    """Scores of all blocks, with ties; a share of `gaps` of them without a score."""
    windows = rng.integers(0, values, (n_layers + 1,) * 2).astype(float)
    windows[rng.random(windows.shape) < gaps] = np.nan
    windows[np.tril_indices(n_layers + 1)] = np.nan
    return windows


def test_contiguous_takes_the_best_window_where_windows_are_scored():
    rng, refused = np.random.default_rng(0), 0
    for scores, n, protected in instances():
        windows = random_windows(rng, len(scores), gaps=0.3)
        known = [
            (windows[a, a + n], a)
            for a in range(len(scores) - n + 1)
            if not set(range(a, a + n)) & set(protected) and not np.isnan(windows[a, a + n])
        ]
        if known:
            start = max(known)[1]
            chosen = select_layers(scores, n, rule="contiguous", protected=protected, windows=windows)
            assert chosen == list(range(start, start + n))
        else:
            refused += 1
            with pytest.raises(BudgetError, match=f"no {n} neighbouring layers"):
                select_layers(scores, n, rule="contiguous", protected=protected, windows=windows)
    assert 5 < refused < 55


def test_greedy_without_rescoring_is_independent():
    for scores, n, protected in instances(20):
        assert select_layers(scores, n, rule="greedy", protected=protected) == select_layers(
            scores, n, protected=protected
        )


def test_greedy_by_windows_completes_the_best_run():
    """Against a loop that writes the removed layers as a string and finds the run around each other layer."""
    rng = np.random.default_rng(1)
    for scores, n, protected in instances():
        n_layers = len(scores)
        windows = random_windows(rng, n_layers, values=50)
        gone: list[int] = []
        while len(gone) < n:
            worth = {}
            for layer in set(range(n_layers)) - set(gone) - set(protected):
                marks = "".join("x" if other in {*gone, layer} else "." for other in range(n_layers))
                start = marks.rfind(".", 0, layer) + 1
                stop = marks.find(".", layer) if "." in marks[layer:] else n_layers
                worth[layer] = windows[start, stop] if gone else scores[layer]
            gone.append(max(worth, key=lambda layer: (worth[layer], layer)))
        order = removal_order(
            scores, n, rule="greedy", protected=protected, rescore=lambda removed, w=windows: run_scores(w, removed)
        )
        assert order == gone


def test_greedy_asks_once_for_each_further_layer():
    asked = []

    def rescore(removed):
        asked.append(removed)
        return np.array([0.0, 1.0, 2.0, 3.0]) * (-1.0 if len(removed) % 2 else 1.0)

    assert removal_order([5.0, 1.0, 2.0, 3.0], 3, rule="greedy", rescore=rescore) == [0, 1, 3]
    assert asked == [(0,), (0, 1)]
    with pytest.raises(BadParameter, match="rescore\\(\\) must return 3 values"):
        select_layers([0.0, 1.0, 2.0], 2, rule="greedy", rescore=rescore)
    with pytest.raises(BudgetError, match="after 1 layers no other one has a score"):
        select_layers([0.0, 1.0], 2, rule="greedy", rescore=lambda removed: np.full(2, np.nan))


def plain_triplets(scores, n, protected, windows):
    """INTERLACE's selection by dictionaries: [(drop, tune, freeze or None)], as many as there are."""
    n_layers, used, groups = len(scores), set(), []
    for width in (3, 2):
        values = {i: windows[i, i + width] for i in range(n_layers - width + 1) if windows[i, i + width] >= 0}
        for i in sorted(values, key=lambda i: (values[i], i), reverse=True):
            free = [layer for layer in (i, i + 1) if layer not in protected]
            if len(groups) == n or not free or used & set(range(i, i + width)):
                continue
            drop = max(free, key=lambda layer: (scores[layer], layer))
            groups.append((drop, 2 * i + 1 - drop, i + 2 if width == 3 else None))
            used |= set(range(i, i + width))
    return groups


@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_triplet_is_interlace_s_selection(gaps):
    """Also where some blocks have no score: they are no candidates, and the order of the others stays."""
    rng, short = np.random.default_rng(2), 0
    for scores, n, protected in instances():
        windows = random_windows(rng, len(scores), gaps=gaps)
        expected = plain_triplets(scores, n, protected, windows)
        free = [layer for layer in range(len(scores)) if layer not in protected]
        found, enough = triplets(scores, n, free, windows)
        assert [(one.drop, one.keep, one.freeze) for one in found] == expected and enough == (len(expected) == n)
        if enough:
            assert select_layers(scores, n, rule="triplet", protected=protected, windows=windows) == sorted(
                drop for drop, _, _ in expected
            )
        else:
            short += 1
            with pytest.raises(BudgetError, match=f"only {len(expected)} triplets and pairs of layers fit"):
                select_layers(scores, n, rule="triplet", protected=protected, windows=windows)
    assert 5 < short < 55


def test_triplets_never_touch_and_the_anchor_stays():
    rng = np.random.default_rng(3)
    for n_layers in (9, 16, 36):
        scores = rng.random(n_layers)
        found, enough = triplets(scores, n_layers // 4, range(n_layers))
        layers = [layer for one in found for layer in (one.drop, one.keep, one.freeze) if layer is not None]
        assert enough and len(set(layers)) == len(layers)
        for one in found:
            assert abs(one.drop - one.keep) == 1 and scores[one.drop] >= scores[one.keep]
            assert one.freeze is None or one.freeze == max(one.drop, one.keep) + 1


def test_without_windows_a_triplet_is_worth_its_layers_mean():
    scores = np.array([0.9, 0.0, 0.0, 0.4, 0.5, 0.4, 0.0])
    assert select_layers(scores, 1, rule="triplet") == [4]  # (3, 4, 5) has the best mean, 0 the best layer


def test_threshold_removes_what_exceeds_a_share_of_the_highest():
    scores, told = np.array([0.2, 0.8, 0.5, 1.0, 0.9]), []
    options = {"rule": "global_threshold", "warn": told.append}
    assert select_layers(scores, 2, epsilon=0.85, **options) == [3, 4] and not told
    assert select_layers(scores, 2, epsilon=0.5, **options) == [1, 3, 4]  # 0.5 does not exceed 0.5
    assert told == ["global_threshold: epsilon=0.5 removes 3 layers, 2 were asked for"]
    assert select_layers(scores, 2, epsilon=0.5, protected=(3,), **options) == [1, 4]  # a share of the highest of all
    assert select_layers(scores, 2, epsilon=1.0, **options) == []
    assert select_layers(scores, 0, epsilon=0.5, **options) == []


def test_threshold_without_epsilon_meets_the_budget():
    for scores, n, protected in instances():
        told = []
        chosen = select_layers(scores, n, rule="global_threshold", protected=protected, warn=told.append)
        assert chosen == select_layers(scores, n, protected=protected)
        rest = [scores[layer] for layer in range(len(scores)) if layer not in {*chosen, *protected}]
        tied = bool(rest) and max(rest) == min(scores[chosen])
        assert bool(told) == tied


@pytest.mark.parametrize(
    ("scores", "epsilon", "words"),
    [
        ([1.0, 0.9, 0.8], 0.5, "epsilon=0.5 removes all 3 layers"),
        ([-1.0, -2.0, -3.0], 0.5, "highest score, which is -1"),
        ([1.0, 2.0, 3.0], -0.1, "epsilon must be a finite number >= 0"),
        ([1.0, 2.0, 3.0], np.nan, "epsilon must be a finite number >= 0"),
    ],
)
def test_thresholds_that_cannot_be_met(scores, epsilon, words):
    with pytest.raises((BudgetError, BadParameter), match=words):
        select_layers(scores, 1, rule="global_threshold", epsilon=epsilon)


def test_windows_of_another_shape_or_infinite_are_refused():
    with pytest.raises(BadParameter, match=r"must return shape \(4, 4\) for 3 layers, got \(3, 3\)"):
        select_layers([0.0, 1.0, 2.0], 1, rule="contiguous", windows=np.zeros((3, 3)))
    windows = np.zeros((4, 4))
    windows[1, 3] = np.inf
    with pytest.raises(BadParameter, match=r"block \[1, 3\) is infinite"):
        select_layers([0.0, 1.0, 2.0], 1, rule="contiguous", windows=windows)


def test_with_a_gap_of_one_spaced_is_independent():
    for scores, n, protected in instances(20):
        assert select_layers(scores, n, rule="spaced", protected=protected, min_gap=1) == select_layers(
            scores, n, protected=protected
        )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("independent", [4, 5, 6, 7]),
        ("contiguous", [4, 5, 6, 7]),
        ("spaced", [1, 3, 5, 7]),
        ("greedy", [4, 5, 6, 7]),
        ("global_threshold", [4, 5, 6, 7]),
    ],
)
def test_equal_scores_go_deeper_first(rule, expected):
    assert select_layers([0.1] * 8, 4, rule=rule) == expected


def test_equal_triplets_go_deeper_first():
    assert removal_order([0.1] * 8, 3, rule="triplet") == [6, 3, 1]  # (5, 6, 7), (2, 3, 4), then the pair (0, 1)


@pytest.mark.parametrize("rule", RULES)
def test_one_layer_is_the_best_one(rule):
    scores = np.array([0.1, 0.7, 0.9, 0.2, 0.3, 0.1, 0.4])
    assert select_layers(scores, 1, rule=rule) == [2]
    assert select_layers(scores, 1, rule=rule, protected=(2,)) == [1]


@pytest.mark.parametrize("rule", ["independent", "contiguous", "greedy", "global_threshold"])
def test_every_free_layer_may_go(rule):
    assert select_layers([3.0, 1.0, 2.0, 4.0], 3, rule=rule, protected=(0,)) == [1, 2, 3]


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
