"""Masks as bits: what stays of a tensor, eight weights to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(keep: Any) -> Tensor:
    """(..., n) bool tensor or array, True stays → (..., ceil(n / 8)) uint8 tensor on the CPU, the order of np.packbits.

    The bits behind the last column are 0.
    """
    import torch

    values = keep.detach().cpu().numpy() if isinstance(keep, torch.Tensor) else np.asarray(keep)
    return torch.from_numpy(np.packbits(values.astype(bool), axis=-1))


def unpack(packed: Any, columns: int) -> Tensor:
    """The inverse of `pack`: (..., ceil(columns / 8)) uint8 → (..., columns) bool tensor on the CPU.

    Raises:
        ValueError: another width than `columns` takes, or a bit behind the last column.
    """
    import torch

    values = packed.detach().cpu().numpy() if isinstance(packed, torch.Tensor) else np.asarray(packed)
    if values.dtype != np.uint8 or values.ndim == 0 or values.shape[-1] != -(-columns // 8):
        raise ValueError(
            f"bits of {columns} columns are uint8 of width {-(-columns // 8)}, got {values.dtype} {values.shape}"
        )
    if columns % 8 and (values[..., -1] & (0xFF >> columns % 8)).any():
        raise ValueError(f"there are bits behind column {columns}")
    return torch.from_numpy(np.unpackbits(values, axis=-1, count=columns).view(bool))
