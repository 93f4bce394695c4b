"""One vector per sample and layer boundary: means over tokens, the last token, an aggregation token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.calibration.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["points_aggregator", "points_last", "points_mean", "pooled"]


def pooled(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """S4: mean visual, mean text and last state of every layer boundary, (B, 3, L+1, d)."""
    import torch

    sums = _segment_sums(batch)
    counts = torch.tensor(batch.counts, device=batch.device).clamp(min=1)[:, :, None, None]
    means = sums / counts
    return {"pooled": torch.stack([means[:, 0], means[:, 2], _last(batch)], 1)}


def points_last(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """The last token's state after each layer, (B, L, d)."""
    return {"points.last": _last(batch)[:, 1:]}


def points_mean(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """The mean over all tokens after each layer, (B, L, d)."""
    import torch

    counts = torch.tensor(batch.counts, device=batch.device).sum(1).clamp(min=1)[:, None, None]
    return {"points.mean": _segment_sums(batch).sum(1)[:, 1:] / counts}


def points_aggregator(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """The appended token's state after each layer, (B, L, d)."""
    return {"points.aggregator": batch.aggregator[1:].float().transpose(0, 1)}


def _last(batch: Batch) -> Tensor:
    """(B, L+1, d)"""
    return batch.states[:, batch.last].float().transpose(0, 1)


def _segment_sums(batch: Batch) -> Tensor:
    """Sums of the states over the tokens of each segment, (B, 4, L+1, d)."""
    import torch

    return batch.once("segment sums", lambda: _sum(batch, torch))


def _sum(batch: Batch, torch: Any) -> Tensor:
    n, _, width = batch.states.shape
    sums = torch.zeros(batch.size, 4, n, width, device=batch.device)
    for sample, segment, start, stop in batch.segments():
        torch.sum(batch.states[:, start:stop], 1, dtype=torch.float32, out=sums[sample, segment])
    return sums
