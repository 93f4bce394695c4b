"""Which tokens matter, by the attention they take part in; and cosines over those alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunebench.calibration.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["attention_importance", "important_cosine"]


def attention_importance(batch: Batch, _value: Any) -> dict[str, Tensor]:
    """S7: importance of each token, mean over the layers, (B, T) in order of position; 0 beyond a sample's tokens."""
    import torch

    values = torch.zeros(batch.size, max(sum(counts) for counts in batch.counts))
    found = batch.importance.cpu()
    places = batch.packed_at.cpu()
    for row, place in enumerate(places):
        tokens = found[place[place >= 0]]
        values[row, : len(tokens)] = tokens
    return {"attention_importance": values}


def important_cosine(batch: Batch, share: float) -> dict[str, Tensor]:
    """Sums of cos(h_l, h_{l+1}) over the most important tokens, (B, 3, L): all of them, media, text; and their counts.

    Of the media tokens and of the text tokens of a sample the share p with the highest importance counts, rounded up:
    the two kinds are scored by different parts of the attention matrix, so that one cut over both would compare what
    has no common scale. Of equals the earlier token is taken.
    """
    import torch

    name = f"important_cosine={share!r}"
    found = batch.once("neighbour cosines", lambda: _neighbour_cosines(batch))
    sums = torch.zeros(batch.size, 3, len(found))
    counts = torch.zeros(batch.size, 3)
    for sample, (start, _) in enumerate(batch.bounds()):
        visual, audio, text, _ = batch.counts[sample]
        for kind, (low, size) in enumerate(((start, visual + audio), (start + visual + audio, text)), start=1):
            kept = math.ceil(share * size - 1e-9)  # 0.1 · 30 is 3, not 4
            # Packed tokens of two media kinds are not in order of position: ties are broken by the padded place.
            order = torch.argsort(batch.index[low : low + size])
            ranked = torch.sort(batch.importance[low : low + size][order], descending=True, stable=True).indices
            tokens = low + order[ranked[:kept]]
            sums[sample, kind] = found[:, tokens].sum(1).cpu()
            counts[sample, kind] = kept
    sums[:, 0], counts[:, 0] = sums[:, 1] + sums[:, 2], counts[:, 1] + counts[:, 2]
    return {name: sums, f"{name}.count": counts}


def _neighbour_cosines(batch: Batch) -> Tensor:
    """cos(h_l, h_{l+1}) of every token, (L, P)."""
    import torch

    states, inverse = batch.states, batch.inverse_norms()
    rows = [(states[i].float() * states[i + 1].float()).sum(-1) for i in range(len(states) - 1)]
    return (torch.stack(rows) * inverse[:-1] * inverse[1:]).clamp_(-1.0, 1.0)
