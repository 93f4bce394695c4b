"""Closed forms that make up for removed layers, from arrays to one matrix that is folded into a linear module.

Nothing here knows models, methods or plans: rows are tokens or samples, columns the hidden dimensions, all arithmetic
is float64. A matrix F returned here goes on the output side of a linear module: W ← F W and b ← F b, so that the module
gives F y where it gave y. Which module that is, is the caller's business (`prunebench.ops.Fold`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["cosine_fold", "least_squares_fold", "removed_runs", "subspace_fold"]


def removed_runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Longest half-open stretches [a, b) of neighbouring layers, ascending: {5, 3, 4, 8} → [(3, 6), (8, 9)]."""
    runs: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    return runs


def least_squares_fold(m: np.ndarray, h_in: np.ndarray, h_out: np.ndarray, alpha: float = 0.0) -> np.ndarray:
    """The F that lets the MLP before removed layers say what those would have said, by least squares.

    The stream before the removed layers is h_in = r + m, with m what the last MLP before them adds. With F folded into
    that MLP it becomes r + F m for every token; the F = Tᵀ that brings it nearest to h_out, what came out of the
    removed layers, has T = (MᵀM + αI)⁻¹ Mᵀ (h_out − (h_in − M)). ReplaceMe (arXiv 2505.02819).

    Args:
        m: (n, d) MLP output at n tokens.
        h_in: (n, d) hidden state before the removed layers, at the same tokens.
        h_out: (n, d) hidden state after them.
        alpha: ridge factor; at 0 the solution of smallest norm is taken where several fit equally well.

    Raises:
        ValueError: shapes that differ, no tokens, a negative `alpha`, or values that are not finite.
    """
    from scipy import linalg

    m, h_in, h_out = _checked(m, h_in, h_out)
    if alpha < 0:
        raise ValueError(f"alpha must not be negative, got {alpha}")
    target = h_out - (h_in - m)
    if alpha > 0:
        gram = m.T @ m
        gram[np.diag_indices_from(gram)] += alpha
        return linalg.solve(gram, m.T @ target, assume_a="pos").T
    # On M itself, not on MᵀM, whose condition number is the square; pivoted QR finds the rank that is there.
    cutoff = np.finfo(np.float64).eps * max(m.shape)
    return linalg.lstsq(m, target, cond=cutoff, lapack_driver="gelsy")[0].T


def cosine_fold(
    m: np.ndarray,
    h_in: np.ndarray,
    h_out: np.ndarray,
    *,
    epochs: int = 10,
    batch_size: int = 1024,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> np.ndarray:
    """As `least_squares_fold`, for the F with the least mean 1 − cos(r + F m, h_out): by Adam from F = I.

    Args:
        m, h_in, h_out: (n, d).
        epochs: passes over the tokens.
        batch_size: tokens per step.
        learning_rate: of Adam (β = 0.9, 0.999; ε = 1e-8).
        seed: of the order of tokens.

    Raises:
        ValueError: as in `least_squares_fold`.
    """
    m, h_in, h_out = _checked(m, h_in, h_out)
    rest = h_in - m
    goal = h_out / np.maximum(np.linalg.norm(h_out, axis=1, keepdims=True), 1e-12)
    fold = np.eye(m.shape[1])  # row vectors: r + m Fᵀ
    first, second = np.zeros_like(fold), np.zeros_like(fold)
    rng, step = np.random.default_rng(seed), 0
    for _ in range(epochs):
        order = rng.permutation(len(m))
        for low in range(0, len(m), batch_size):
            rows = order[low : low + batch_size]
            state = rest[rows] + m[rows] @ fold.T
            length = np.maximum(np.linalg.norm(state, axis=1, keepdims=True), 1e-12)
            unit = state / length
            cosine = (unit * goal[rows]).sum(1, keepdims=True)
            slope = (cosine * unit - goal[rows]) / length / len(rows)  # of the mean of 1 − cos, by the state
            gradient = slope.T @ m[rows]
            step += 1
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            mean, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
            fold -= learning_rate * mean / (np.sqrt(spread) + 1e-8)
    return fold


def subspace_fold(x_pruned: np.ndarray, x_retained: np.ndarray, k: int) -> np.ndarray:
    """F = I + V_k V_kᵀ, with V_k the first k right singular vectors of x_pruned − x_retained.

    It doubles what the module gives within the subspace in which the removed layers changed the features most; it adds
    nothing that the module does not give, and leaves the rest of the residual stream alone. Short-LVLM's subspace
    compensation as its figure shows it.

    Args:
        x_pruned: (n, d) features of n samples after the removed layers.
        x_retained: (n, d) features of the same samples after the retained layer.
        k: dimensions; directions in which nothing differs are left out.

    Raises:
        ValueError: shapes that differ, no samples, `k` below 1 or above what n samples of d numbers can span, or values
            that are not finite.
    """
    pruned, retained = _checked(x_pruned, x_retained)
    if not 1 <= k <= min(pruned.shape):
        raise ValueError(f"k={k} directions cannot be had from {len(pruned)} samples of {pruned.shape[1]} numbers")
    difference = pruned - retained
    _, values, directions = np.linalg.svd(difference, full_matrices=False)
    there = values > values[0] * np.finfo(np.float64).eps * max(difference.shape)
    span = directions[:k][there[:k]]
    return np.eye(pruned.shape[1]) + span.T @ span


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    found = [np.asarray(array, dtype=np.float64) for array in arrays]
    shapes = {array.shape for array in found}
    if len(shapes) > 1 or found[0].ndim != 2 or not found[0].size:
        listing = ", ".join(str(array.shape) for array in found)
        raise ValueError(f"arrays of one shape (n, d) with n > 0 are needed, got {listing}")
    if not all(np.isfinite(array).all() for array in found):
        raise ValueError("values that are not finite numbers cannot be fitted")
    return found
