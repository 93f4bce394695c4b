"""Tokens behind an encoded prompt: what every family hands to its decoder, made longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.adapter import DecoderInputs, LoadedModel
from prunebench.errors import CalibrationError
from prunebench.probing.answers import longer, next_positions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["append_tokens"]

AS_THEY_ARE = ("deepstack_visual_embeds", "cross_attention_states")
"""Entries with one row per media token: more words change nothing in them."""


def append_tokens(
    loaded: LoadedModel, inputs: DecoderInputs, ids: Tensor, mask: Tensor, repeated: tuple[str, ...]
) -> DecoderInputs:
    """The prompts with `ids` (batch, more) behind them.

    Args:
        loaded: the model.
        inputs: encoded prompts.
        ids: what follows; where `mask` is 0 nothing does.
        mask: (batch, more).
        repeated: entries of ``extra`` whose last row (axis -2) holds for what follows too.

    Raises:
        CalibrationError: an entry of ``extra`` that nothing here knows how to make longer.
    """
    import torch

    more = ids.shape[1]
    extra: dict[str, Any] = next_positions(inputs, more)
    for name, value in inputs.extra.items():
        if name == "attention_mask":
            extra[name] = _longer_mask(loaded, inputs, value, mask)
        elif name == "visual_pos_masks":
            extra[name] = torch.cat([value, value.new_zeros(len(value), more)], 1)
        elif name in repeated:
            extra[name] = torch.cat([value, value[..., -1:, :].repeat_interleave(more, -2)], -2)
        elif name not in (*AS_THEY_ARE, "position_ids"):
            raise CalibrationError(f"an answer cannot be put behind inputs with {name!r} yet: use text without media")
    return longer(loaded, inputs, ids, mask, extra)


def _longer_mask(loaded: LoadedModel, inputs: DecoderInputs, given: Any, mask: Tensor) -> Any:
    """Masks (batch, 1, tokens, tokens) in bool, by kind of layer or for all: what follows looks back, never ahead."""
    config = loaded.adapter.text_config(loaded.model)
    if isinstance(given, dict):
        return {kind: _square(inputs, value, mask, _window(config, kind)) for kind, value in given.items()}
    return _square(inputs, given, mask, getattr(config, "sliding_window", None))


def _window(config: Any, kind: str) -> int | None:
    """How many tokens back a kind of layer sees; None for all."""
    if kind == "full_attention":
        return None
    window = getattr(config, "sliding_window", None)
    if kind != "sliding_attention" or window is None:
        raise CalibrationError(f"layers of the kind {kind!r} choose what they see in a way that is not known here")
    return int(window)


def _square(inputs: DecoderInputs, seen: Tensor | None, mask: Tensor, window: int | None) -> Tensor | None:
    """One mask made longer; None, which stands for the plain causal one, stays None."""
    import torch

    if seen is None:
        return None
    if seen.dim() == 2:
        return torch.cat([seen, mask.to(seen)], 1)
    batch, tokens, more = len(mask), seen.shape[-1], mask.shape[1]
    real = torch.cat([inputs.attention_mask.bool(), mask.bool()], 1)
    places = torch.arange(tokens + more, device=seen.device)
    back = places[tokens:, None] - places[None, :]
    allowed = (back >= 0) if window is None else (back >= 0) & (back < window)
    rows = allowed[None] & real[:, None, :].to(seen.device)
    rows[:, torch.arange(more), tokens + torch.arange(more)] = True  # padding sees itself: no row may see nothing
    above = torch.cat([seen.expand(batch, 1, tokens, tokens), seen.new_zeros(batch, 1, tokens, more)], -1)
    return torch.cat([above, rows[:, None]], -2)
