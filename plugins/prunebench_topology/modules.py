"""Decomposition of a zigzag of F_2 vector spaces into intervals (compiled with numba; import this module lazily).

The right filtration of Carlsson & de Silva, "Zigzag persistence" (Found. Comput. Math. 2010): of the current space a
basis is kept in an order such that the first i vectors span the i-th filtration step, with the position at which each
was born.  Crossing an arrow, a step that stops growing ends an interval; new vectors enter at the end (forward arrow:
cokernel) or at the front (backward: kernel). Vectors are rows of uint64 words.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from prunebench_topology.complexes import ONE, ZERO, flip_bit, has_bit, lowest_bit


@njit(cache=True)
def highest_bit(row):
    """Index of the highest set bit of a row, -1 for the zero row."""
    for w in range(row.shape[0] - 1, -1, -1):
        word = row[w]
        if word != ZERO:
            position = 0
            shift = 32
            while shift > 0:
                if word >> np.uint64(shift) != ZERO:
                    word >>= np.uint64(shift)
                    position += shift
                shift >>= 1
            return (w << 6) + position
    return -1


@njit(cache=True)
def add_row(target, source):
    """``target += source`` over F_2."""
    for w in range(target.shape[0]):
        target[w] ^= source[w]


@njit(cache=True)
def cross_backward(basis, pivots, births, images, position, bars, n_bars):
    """Cross V <- W: from the filtered basis of V to that of W.

    ``basis`` (n, words of V) with a pivot bit per vector at which all later vectors are zero; ``images`` (m, words of
    V) are the images in V of the standard basis of W.  Appends the ended intervals ``[birth, position)`` to ``bars``
    and returns ``(combinations, births, n_bars)``: the filtered basis of W as (m, words of m) combinations of its
    standard basis.
    """
    n, m = basis.shape[0], images.shape[0]
    n_words, m_words = max(1, (n + 63) >> 6), max(1, (m + 63) >> 6)
    coefficients = np.zeros((m, n_words), dtype=np.uint64)
    for f in range(m):
        rest = images[f].copy()
        for i in range(n):  # forward substitution: vectors after i are zero at the pivot of i
            if has_bit(rest, pivots[i]):
                flip_bit(coefficients[f], i)
                add_row(rest, basis[i])
    combinations = np.zeros((m, m_words), dtype=np.uint64)
    owner = np.full(n, -1, dtype=np.int64)  # filtration step -> the vector of W that first reaches it
    kernel = np.zeros(m, dtype=np.bool_)
    for f in range(m):
        flip_bit(combinations[f], f)
        step = highest_bit(coefficients[f])
        while step >= 0 and owner[step] >= 0:
            add_row(coefficients[f], coefficients[owner[step]])
            add_row(combinations[f], combinations[owner[step]])
            step = highest_bit(coefficients[f])
        if step >= 0:
            owner[step] = f
        else:
            kernel[f] = True
    new_basis = np.empty((m, m_words), dtype=np.uint64)
    new_births = np.empty(m, dtype=np.int64)
    at = 0
    for f in range(m):
        if kernel[f]:
            new_basis[at] = combinations[f]
            new_births[at] = position
            at += 1
    for i in range(n):
        if owner[i] >= 0:
            new_basis[at] = combinations[owner[i]]
            new_births[at] = births[i]
            at += 1
        else:
            bars[n_bars, 0] = births[i]
            bars[n_bars, 1] = position
            n_bars += 1
    return new_basis, new_births, n_bars


@njit(cache=True)
def cross_forward(combinations, births, images, dimension, position, bars, n_bars):
    """Cross W -> V: from the filtered basis of W (see cross_backward) to that of V, of the given dimension.

    ``images`` (m, words of V) are the images in V of the standard basis of W.  Returns ``(basis, pivots, births,
    n_bars)``.
    """
    m = combinations.shape[0]
    n_words = max(1, (dimension + 63) >> 6)
    basis = np.zeros((dimension, n_words), dtype=np.uint64)
    pivots = np.empty(dimension, dtype=np.int64)
    new_births = np.empty(dimension, dtype=np.int64)
    taken = np.zeros(dimension, dtype=np.bool_)
    at = 0
    vector = np.empty(n_words, dtype=np.uint64)
    for i in range(m):
        vector[:] = ZERO
        for w in range(combinations.shape[1]):
            word = combinations[i, w]
            while word != ZERO:
                add_row(vector, images[(w << 6) + lowest_bit(word)])
                word &= word - ONE
        for j in range(at):
            if has_bit(vector, pivots[j]):
                add_row(vector, basis[j])
        pivot = -1
        for w in range(n_words):
            if vector[w] != ZERO:
                pivot = (w << 6) + lowest_bit(vector[w])
                break
        if pivot < 0:
            bars[n_bars, 0] = births[i]
            bars[n_bars, 1] = position
            n_bars += 1
        else:
            basis[at] = vector
            pivots[at] = pivot
            taken[pivot] = True
            new_births[at] = births[i]
            at += 1
    for q in range(dimension):
        if not taken[q]:
            flip_bit(basis[at], q)
            pivots[at] = q
            new_births[at] = position
            at += 1
    return basis, pivots, new_births, n_bars
