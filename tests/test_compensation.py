"""Closed-form compensation: where a linear map is exact it is found exactly, and where not, nothing does better."""

from __future__ import annotations

import numpy as np
import pytest

from prunebench.compensation import cosine_fold, least_squares_fold, removed_runs, subspace_fold


def case(seed: int, n: int = 60, d: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MLP outputs, states before and a fold that is far from the identity."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)), np.eye(d) + 0.5 * rng.normal(size=(d, d))


def test_runs():
    assert removed_runs([]) == []
    assert removed_runs([5, 3, 4, 8, 4]) == [(3, 6), (8, 9)]
    assert removed_runs(range(16)) == [(0, 16)]


def test_an_exact_linear_map_is_found_exactly():
    m, h_in, fold = case(0)
    h_out = h_in - m + m @ fold.T
    np.testing.assert_allclose(least_squares_fold(m, h_in, h_out), fold, atol=1e-12)
    np.testing.assert_allclose(least_squares_fold(m, h_in, h_in), np.eye(7), atol=1e-12)  # nothing was removed


def test_ridge_is_the_formula_and_shrinks_to_zero():
    m, h_in, fold = case(1)
    h_out = h_in - m + m @ fold.T + np.random.default_rng(9).normal(size=m.shape)
    for alpha in (0.1, 10.0):
        formula = np.linalg.inv(m.T @ m + alpha * np.eye(7)) @ m.T @ (h_out - (h_in - m))
        np.testing.assert_allclose(least_squares_fold(m, h_in, h_out, alpha), formula.T, atol=1e-10)
    assert np.abs(least_squares_fold(m, h_in, h_out, 1e12)).max() < 1e-8


def test_no_small_step_from_the_solution_is_better():
    m, h_in, fold = case(2)
    h_out = np.tanh(h_in) + m @ fold.T
    best = least_squares_fold(m, h_in, h_out)

    def error(matrix: np.ndarray) -> float:
        return float(((h_in - m + m @ matrix.T - h_out) ** 2).sum())

    rng = np.random.default_rng(0)
    assert all(error(best) < error(best + 1e-3 * rng.normal(size=best.shape)) for _ in range(50))


def test_too_few_tokens_give_the_smallest_exact_map():
    m, h_in, fold = case(3, n=4)
    h_out = h_in - m + m @ fold.T
    found = least_squares_fold(m, h_in, h_out)
    np.testing.assert_allclose(h_in - m + m @ found.T, h_out, atol=1e-12)
    np.testing.assert_allclose(found, (np.linalg.pinv(m) @ (h_out - (h_in - m))).T, atol=1e-12)


def test_cosine_fold_turns_towards_the_goal_and_ignores_its_length():
    m, h_in, fold = case(4, n=400)
    h_out = h_in - m + m @ fold.T

    def cosine(matrix: np.ndarray) -> float:
        state = h_in - m + m @ matrix.T
        return float(((state * h_out).sum(1) / np.linalg.norm(state, axis=1) / np.linalg.norm(h_out, axis=1)).mean())

    found = cosine_fold(m, h_in, h_out, epochs=150, batch_size=100, learning_rate=1e-2)
    assert cosine(found) > 0.999 > cosine(np.eye(7))
    again = cosine_fold(m, h_in, 3.0 * h_out, epochs=150, batch_size=100, learning_rate=1e-2)
    np.testing.assert_allclose(again, found, atol=1e-9)
    one = cosine_fold(m, h_in, h_out, epochs=1, batch_size=400, learning_rate=1e-6)  # one Adam step is the sign
    step = 1e-5
    for i, j in ((0, 0), (2, 5), (6, 1)):  # of the slope, here by differences
        up, down = np.eye(7), np.eye(7)
        up[i, j] += step
        down[i, j] -= step
        assert np.sign(one[i, j] - np.eye(7)[i, j]) == np.sign(cosine(up) - cosine(down))


def test_subspace_fold_doubles_what_changed_most_and_nothing_else():
    rng = np.random.default_rng(5)
    span = np.linalg.qr(rng.normal(size=(9, 2)))[0].T  # two orthonormal directions
    retained = rng.normal(size=(30, 9))
    pruned = retained + rng.normal(size=(30, 2)) * [5.0, 3.0] @ span
    fold = subspace_fold(pruned, retained, 2)
    np.testing.assert_allclose(fold, np.eye(9) + span.T @ span, atol=1e-12)
    np.testing.assert_allclose(subspace_fold(pruned, retained, 8), fold, atol=1e-10)  # there is no third direction
    noise = rng.normal(size=9)
    outside = noise - span.T @ (span @ noise)
    np.testing.assert_allclose(fold @ span[0], 2 * span[0], atol=1e-12)
    np.testing.assert_allclose(fold @ outside, outside, atol=1e-12)
    np.testing.assert_allclose(subspace_fold(retained, retained, 3), np.eye(9))  # layers that change nothing


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: least_squares_fold(m, m[:3], m), "one shape"),
        (lambda m: least_squares_fold(m[:0], m[:0], m[:0]), "n > 0"),
        (lambda m: least_squares_fold(m, m, m, -1.0), "alpha must not be negative"),
        (lambda m: least_squares_fold(m, m, np.full_like(m, np.nan)), "not finite"),
        (lambda m: cosine_fold(m, m, m[:, :2]), "one shape"),
        (lambda m: subspace_fold(m, m, 0), "k=0 directions"),
        (lambda m: subspace_fold(m[:2], m[:2], 3), "k=3 directions cannot be had from 2 samples"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call(case(6)[0])
