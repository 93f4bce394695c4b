"""Adaptive multimodal input activation: the few tokens that stand for all outputs of a linear module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunebench_baselines.diversity import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NEIGHBOURS", "PENALTY", "STORED", "TOLERANCE", "representative_tokens"]

NEIGHBOURS = 3
PENALTY = 0.2
"""How fast a picked token's claim on its neighbours fades with their cosine distance."""

TOLERANCE = 0.1
STORED = 8192
"""Up to so many tokens the kernel's T × T float32 matrix is kept; rows of a larger one are computed when needed."""

_ROUNDING = 1e-9  # of a discrepancy that is exactly 0, as that of all tokens from themselves


def representative_tokens(outputs: Tensor, attention: Tensor, diversity: float) -> Tensor:
    """Tokens picked until they are distributed as all are; arXiv 2504.09897.

    With u the outputs scaled to length 1, D_ij = 1 − u_i · u_j and N(i) the three nearest other tokens of i:

    1. g_i = a_i + Σ_{j ∈ N(i)} exp(−D_ij) a_j: a token counts by the attention on it and on those near it;
    2. the highest g that is left is picked, and for its neighbours g_j ← g_j − exp(−0.2 D_ij) max(g_i, 0);
    3. the end is where MMD²(all, picked) < 0.1 √diversity, with the kernel exp(−‖u_i − u_j‖² / 2).

    The order of the picks does not depend on where they end: they are made in blocks of doubling size, and the
    discrepancy after each pick of a block follows from running sums of kernel rows, O(T) per pick.

    Args:
        outputs: (T, d), finite.
        attention: (T,) of the last token, mean over heads.
        diversity: mean of 1 − cosine over the groups of tokens.

    Returns:
        (T,) bool; at least one token.
    """
    import torch

    kernel = _Kernel(outputs)
    order = _Order(kernel, attention)
    n_tokens, sums = len(outputs), kernel.sums
    limit = max(TOLERANCE * max(diversity, 0.0) ** 0.5, _ROUNDING)
    reached = torch.zeros_like(sums)  # of every token, Σ over the picked ones of the kernel
    inner = cross = torch.zeros((), dtype=torch.float64, device=sums.device)
    whole, picked, size = sums.sum() / n_tokens**2, 0, 16
    while picked < n_tokens:
        block = torch.from_numpy(order.take(size)).to(sums.device)
        rows = kernel.rows(block).double()
        among = rows[:, block]
        inner = inner + (2 * (reached[block] + among.tril(-1).sum(1)) + among.diagonal()).cumsum(0)
        cross = cross + sums[block].cumsum(0)
        count = picked + torch.arange(1, len(block) + 1, device=sums.device)
        if (enough := whole + inner / count**2 - 2 * cross / (n_tokens * count) < limit).any():
            picked += 1 + int(enough.int().argmax())
            break
        reached, inner, cross = reached + rows.sum(0), inner[-1], cross[-1]
        picked, size = picked + len(block), 2 * size
    chosen = torch.zeros(n_tokens, dtype=torch.bool)
    chosen[torch.from_numpy(order.picks[:picked])] = True
    return chosen.to(outputs.device)


class _Kernel:
    """exp(−‖u_i − u_j‖² / 2) of unit outputs, the sums of its rows, and each token's nearest others."""

    def __init__(self, outputs: Tensor) -> None:
        import torch

        units = torch.nn.functional.normalize(outputs.float(), dim=1)
        self.units, self.half = units, units.square().sum(1).round() / 2  # a token of zeros stays one
        n_tokens = len(units)
        neighbours, step = min(NEIGHBOURS, n_tokens - 1), max(1, CHUNK // n_tokens)
        kept, sums, near, cosines = [], [], [], []
        for start in range(0, n_tokens, step):
            cosine = units[start : start + step] @ units.T
            part = (cosine - self.half[start : start + step, None] - self.half).exp()
            sums.append(part.sum(1, dtype=torch.float64))
            cosine.diagonal(start).fill_(-torch.inf)  # nobody is a neighbour of itself
            best = cosine.topk(neighbours, dim=1)
            near.append(best.indices)
            cosines.append(best.values)
            if n_tokens <= STORED:
                kept.append(part)
        self.sums, self.near, self.cosines = torch.cat(sums), torch.cat(near), torch.cat(cosines)
        self._matrix = torch.cat(kept) if kept else None

    def rows(self, tokens: Tensor) -> Tensor:
        """(n, T) float32."""
        if self._matrix is not None:
            return self._matrix[tokens]
        return (self.units[tokens] @ self.units.T - self.half[tokens, None] - self.half).exp()


class _Order:
    """The tokens in the order in which they are picked; of equal ones the earlier."""

    def __init__(self, kernel: _Kernel, attention: Tensor) -> None:
        held = attention.double().to(kernel.near.device)
        distance = 1 - kernel.cosines.double()
        self._near = kernel.near.cpu().numpy()
        self._claim = (-PENALTY * distance).exp().cpu().numpy()
        self._scores = (held + ((-distance).exp() * held[kernel.near]).sum(1)).cpu().numpy()
        self.picks = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens, or all that are left."""
        scores, taken = self._scores, np.empty(min(count, len(self._scores) - len(self.picks)), dtype=np.int64)
        for place in range(len(taken)):
            best = int(scores.argmax())
            near, top = self._near[best], scores[best]
            taken[place] = best
            if top > 0:
                scores[near] -= self._claim[best] * top
            scores[best] = -np.inf
        self.picks = np.concatenate([self.picks, taken])
        return taken
