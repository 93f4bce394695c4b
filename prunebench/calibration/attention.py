"""How important each token is, read from the attention matrices while the model runs.

No attention matrix of more than a few rows is made: where a fused kernel computes the attention, the matrix is computed
again in chunks of rows from the very queries and keys that the kernel gets, and reduced at once. The kernel still
computes what the model goes on with, so that nothing else changes by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from prunebench.adapter import LoadedModel
from prunebench.calibration.batch import Batch, NotShown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Importance", "Watcher", "bias_of_rows", "watch_attention"]

_CHUNK = 1 << 24
"""Attention probabilities at once, over all heads: 64 MiB."""
_NAMES = ("self_attn", "attn", "attention", "self_attention")


class Watcher(Protocol):
    """Is shown the attention of layers: its probabilities, or queries and keys (see `Importance`)."""

    def add_weights(self, weights: Tensor) -> None: ...

    def add_queries(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, **options: Any
    ) -> None: ...


class Importance:
    """Token importance, summed over layers.

    With the head-averaged attention A of a layer, V the media tokens and X the text tokens of a sample:
    a media token j gets ½ (mean over i in V of A[i, j] + mean over i in X of A[i, j]), what it is looked at;
    a text token i gets ½ (mean over j in V of A[i, j] + mean over i' in X of A[i', i]), how much it looks at the media
    and how much the text looks at it. Where a sample has only one kind, the one mean that exists stands alone.
    """

    def __init__(self, batch: Batch) -> None:
        import torch

        kind = torch.full((batch.size * batch.width,), 3, device=batch.device)
        kind[batch.index] = batch.segment_of % 4
        kind = kind.view(batch.size, batch.width)
        self.media, self.text = (kind < 2).float(), (kind == 2).float()  # (B, T)
        self.batch, self.layers = batch, 0
        self._biases: dict[Any, tuple[Tensor | None, Tensor]] = {}
        self.total = torch.zeros_like(self.media)

    def add_weights(self, weights: Tensor) -> None:
        """Count a layer by its attention probabilities (B, heads, T, T)."""
        self._add(weights.shape, lambda low, high: weights[:, :, low:high].float().mean(1), weights.device)

    def add_queries(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, **options: Any
    ) -> None:
        """Count a layer by its queries (B, heads, T, d) and keys (B, key heads, T, d).

        Args:
            query, key: after positions were put in.
            mask: (B, 1, T, T) boolean or added; (B, T) of padding; or None for plain causal attention.
            scaling: of the products; 1/√d where None.
            options: ``softcap`` and ``sliding_window`` of the attention function.
        """
        import torch

        rows, heads, width, size = query.shape
        groups = heads // key.shape[1]
        scale = size**-0.5 if scaling is None else scaling
        turned = key.float().transpose(2, 3)  # (B, key heads, d, T)
        softcap, window = options.get("softcap"), options.get("sliding_window")

        def chunk(low: int, high: int) -> Tensor:
            part = query[:, :, low:high].float() * scale
            if groups == 1:
                scores = part @ turned  # (B, heads, rows, T)
            else:
                scores = (part.unflatten(1, (key.shape[1], groups)) @ turned.unsqueeze(2)).flatten(1, 2)
            if softcap:
                scores = scores.div_(softcap).tanh_().mul_(softcap)
            scores += self._bias(mask, window, low, high, width, query.device)
            return torch.softmax(scores, -1).mean(1)

        self._add((rows, heads, width, width), chunk, query.device)

    def finish(self) -> Tensor:
        """Mean over the layers that were seen, per packed token, (P,).

        Raises:
            NotShown: no layer showed its attention.
        """
        if not self.layers:
            raise NotShown(
                "attention",
                "this model's attention cannot be read: load it with --attn-implementation eager or sdpa, "
                "or use a method that needs no token importance",
            )
        return (self.total / self.layers).flatten()[self.batch.index]

    def _bias(self, mask: Tensor | None, window: int | None, low: int, high: int, width: int, device: Any) -> Tensor:
        """What is added to the products of rows [low, high): 0 where a token is seen. Layers share one mask object."""
        key = (id(mask), window, low, device)
        if key in self._biases:
            return self._biases[key][1]
        bias = bias_of_rows(mask, window, low, high, width, device)
        if len(self._biases) >= 4 or bias.numel() > _CHUNK:
            self._biases.clear()
        self._biases[key] = mask, bias  # the mask is kept, so that its id stays its own
        return bias

    def _add(self, shape: Any, chunk: Callable[[int, int], Tensor], device: Any) -> None:
        import torch

        rows, heads, width = shape[0], shape[1], shape[2]
        media, text = self.media.to(device), self.text.to(device)
        kinds = torch.stack([media, text], 1)  # (B, 2, T)
        received = torch.zeros_like(kinds)
        given = torch.zeros_like(media)
        step = max(1, _CHUNK // (rows * heads * width))
        for low in range(0, width, step):
            high = min(low + step, width)
            probabilities = chunk(low, high)  # (B, rows, T), the mean over heads
            received += kinds[:, :, low:high] @ probabilities
            given[:, low:high] = (probabilities @ media.unsqueeze(-1)).squeeze(-1)
        n_media, n_text = (kind.sum(1, keepdim=True) for kind in (media, text))
        parts = ((n_media > 0).float() + (n_text > 0).float()).clamp(min=1)
        by_media, by_text = received[:, 0] / n_media.clamp(min=1), received[:, 1] / n_text.clamp(min=1)
        looked = media * (by_media + by_text) + text * (given / n_media.clamp(min=1) + by_text)
        self.total += (looked / parts).to(self.total.device)
        self.layers += 1


def bias_of_rows(mask: Tensor | None, window: int | None, low: int, high: int, width: int, device: Any) -> Tensor:
    """What is added to the products of rows [low, high) with all keys: 0 where a token is seen.

    Args:
        mask: (B, 1, T, T) boolean or added; (B, T) of padding; or None for plain causal attention.
        window: of sliding attention, where the mask does not say it.
        low, high: rows.
        width: T.
        device: of the result, which is broadcast over (B, heads, rows, T).
    """
    import torch

    if mask is not None and mask.dim() == 4 and mask.dtype != torch.bool:
        return mask[:, :, low:high, :width].float()
    if mask is not None and mask.dim() == 4:
        seen = mask[:, :, low:high, :width]
    else:
        at = torch.arange(width, device=device)
        distance = at[low:high, None] - at
        seen = (distance >= 0) & (distance < (window or width))
        if mask is not None:
            seen = seen & mask.bool()[:, None, None, :width]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


@contextmanager
def watch_attention(loaded: LoadedModel, importance: Watcher) -> Iterator[None]:
    """Feed `importance` with the attention of every decoder layer that runs inside the ``with`` block.

    Args:
        loaded: the model.
        importance: `Importance`, or whatever else takes probabilities and queries with keys as it does.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    mine = {id(module) for layer in loaded.layers for module in layer.modules()}
    name = getattr(loaded.adapter.text_config(loaded.model), "_attn_implementation", None)
    original = FUNCTIONS.get(name)

    def recorded(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **options: Any) -> Any:
        if id(module) in mine and (attention_mask is None or hasattr(attention_mask, "dim")):
            chosen = {k: options.get(k) for k in ("softcap", "sliding_window")}
            importance.add_queries(query, key, attention_mask, options.get("scaling"), **chosen)
        return original(module, query, key, value, attention_mask, *args, **options)

    def returned(_module: Any, _args: Any, output: Any) -> None:  # eager attention gives its probabilities itself
        if isinstance(output, tuple) and len(output) > 1 and getattr(output[1], "ndim", 0) == 4:
            importance.add_weights(output[1])

    handles = []
    local = getattr(FUNCTIONS, "_local_mapping", {})
    before = local.get(name)
    try:
        if original is not None:
            FUNCTIONS[name] = recorded
        else:
            for layer in loaded.layers:
                modules = [getattr(layer, n) for n in _NAMES if hasattr(layer, n)]
                handles += [module.register_forward_hook(returned) for module in modules]
        yield
    finally:
        for handle in handles:
            handle.remove()
        if original is not None:
            del FUNCTIONS[name]
            if before is not None:
                FUNCTIONS[name] = before
