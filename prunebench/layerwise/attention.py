"""The last token's attention in one layer, from the very queries and keys that the attention function gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.calibration.attention import bias_of_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LastRow"]


class LastRow:
    """Row of each sample's last token in the attention of a layer, mean over heads.

    Args:
        mask: (batch, tokens) bool, False on padding, which may stand on both sides.
    """

    def __init__(self, mask: Tensor) -> None:
        import torch

        self.mask = mask
        at = torch.arange(mask.shape[1], device=mask.device)
        self.last = [int(row) for row in torch.where(mask, at, -1).max(1).values.tolist()]
        self._sum: list[Tensor] = []
        self._seen = 0

    def add_weights(self, weights: Tensor) -> None:
        """Attention probabilities (batch, heads, tokens, tokens)."""
        self._add([weights[row, :, last].float().mean(0) for row, last in enumerate(self.last)])

    def add_queries(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, **options: Any
    ) -> None:
        """Queries (batch, heads, tokens, d) and keys (batch, key heads, tokens, d), as `Importance.add_queries`."""
        import torch

        width, size = query.shape[2:]
        if key.shape[2] != width or query.shape[:1] + query.shape[2:3] != self.mask.shape:
            return  # of these tokens to others: not what is asked for
        scale = size**-0.5 if scaling is None else scaling
        softcap, found = options.get("softcap"), []
        for row, last in enumerate(self.last):
            asked = query[row, :, last].float().unflatten(0, (key.shape[1], -1)) * scale  # (key heads, group, d)
            scores = (asked @ key[row].float().transpose(1, 2)).flatten(0, 1)  # (heads, T)
            if softcap:
                scores = (scores / softcap).tanh() * softcap
            own = mask if mask is None or mask.shape[0] == 1 else mask[row : row + 1]
            bias = bias_of_rows(own, options.get("sliding_window"), last, last + 1, width, query.device)
            found.append(torch.softmax(scores + bias[0, :, 0] if bias.dim() == 4 else scores + bias, -1).mean(0))
        self._add(found)

    def rows(self) -> list[Tensor] | None:
        """(T,) float32 per sample, padding left out; None where the layer showed no attention."""
        if not self._seen:
            return None
        sums = zip(self._sum, self.mask, strict=True)
        return [row[own.to(row.device)] / self._seen for row, own in sums]

    def _add(self, rows: list[Tensor]) -> None:
        self._sum = rows if not self._seen else [a + b for a, b in zip(self._sum, rows, strict=True)]
        self._seen += 1
