"""Cosines and norms of hidden states, summed over the tokens of each group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.calibration.batch import Batch, with_groups

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["norms", "sublayer_cosine", "token_cosine"]

_CHUNK = 1 << 18
"""Numbers of unit vectors at once: they stay in the processor's cache between scaling and multiplication."""


def token_cosine(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """S1: per sample and group, the sum over tokens of the (L+1, L+1) matrix of cosines.

    Entry (a, b) is the sum over tokens of u_a[t]·u_b[t], the inner product of two long vectors: with the unit vectors
    of all boundaries as rows of U (L+1, n·d), the whole sum is U Uᵀ, and no token needs a matrix of its own.
    """
    import torch

    states, inverse = batch.states, batch.inverse_norms().unsqueeze(-1)
    n, _, width = states.shape
    step = max(1, _CHUNK // (n * width)) if states.device.type == "cpu" else 1 << 12
    sums = torch.zeros(batch.size, 4, n, n, device=batch.device)
    for sample, segment, start, stop in batch.segments():
        target = sums[sample, segment]
        for low in range(start, stop, step):
            high = min(low + step, stop)
            units = (states[:, low:high] * inverse[:, low:high]).flatten(1)
            torch.addmm(target, units, units.T, out=target)
    counts = torch.tensor(batch.counts, dtype=sums.dtype, device=batch.device)[:, :, None, None]
    sums.clamp_(-counts, counts)
    last = (states[:, batch.last] * inverse[:, batch.last]).transpose(0, 1)
    return {"token_cosine": with_groups(sums, (last @ last.transpose(1, 2)).clamp_(-1.0, 1.0))}


def sublayer_cosine(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """Sums over tokens of cos(before attention, after attention) and cos(before MLP, after MLP), of the residual."""
    found = batch.sublayer
    sums = batch.group_sums(found.flatten(0, 1))  # (B, G, 2 L)
    return {"sublayer_cosine": sums.view(*sums.shape[:2], -1, 2)}


def norms(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """S2: sums of state norms and of update norms per sample and group."""
    import torch

    states, updates = batch.states, batch.updates
    if updates is None:
        updates = torch.empty(len(states) - 1, batch.n_tokens, device=batch.device)
        update = torch.empty(states.shape[1:], device=batch.device)
        for layer in range(len(updates)):  # layer by layer: the difference never leaves the cache
            torch.sub(states[layer + 1].float(), states[layer].float(), out=update)
            torch.linalg.vector_norm(update, dim=-1, out=updates[layer])
    sums = batch.group_sums(torch.cat([batch.norms, updates]))
    return {"state_norm": sums[:, :, : len(states)], "update_norm": sums[:, :, len(states) :]}
