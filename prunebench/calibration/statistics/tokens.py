"""A few tokens of every sample with their states at all layers: what closed-form fits and token geometry read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.calibration.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mlp_outputs", "token_states"]


def token_states(batch: Batch, m: int) -> dict[str, Tensor]:
    """S3: m tokens of every sample at every layer boundary, (B, m, L+1, d), with their positions and groups."""
    import torch

    chosen = torch.from_numpy(batch.chosen(m)).to(batch.device)
    states = batch.states[:, chosen.clamp(min=0)].permute(1, 2, 0, 3)
    return _kept(f"token_states={m!r}", batch, m, states)


def mlp_outputs(batch: Batch, m: int) -> dict[str, Tensor]:
    """What each layer's MLP adds to the residual stream at the same tokens, (B, m, L, d)."""
    return _kept(f"mlp_outputs={m!r}", batch, m, batch.mlp[m].permute(1, 2, 0, 3))


def _kept(name: str, batch: Batch, m: int, values: Tensor) -> dict[str, Tensor]:
    import torch

    chosen = torch.from_numpy(batch.chosen(m)).to(batch.device)
    there = chosen >= 0
    values = torch.where(there[:, :, None, None], values, 0)
    offsets = batch.first_columns()
    found = {
        f"{name}.positions": torch.where(
            there, batch.index[chosen.clamp(min=0)] % batch.width - offsets[:, None], -1
        ).to(torch.int32),
        f"{name}.groups": torch.where(there, batch.segment_of[chosen.clamp(min=0)] % 4, -1).to(torch.int8),
    }
    if values.dtype == torch.float32:
        return {name: values, **found}
    # Half precision with a power of two per vector: outlier dimensions of bfloat16 models would overflow float16.
    largest = values.float().abs().amax(-1)
    scale = torch.exp2(torch.ceil(torch.log2(largest.clamp(min=2.0**-100))))
    halves = (values.float() / scale[..., None]).to(torch.float16)
    return {name: halves, f"{name}.scale": scale, **found}
