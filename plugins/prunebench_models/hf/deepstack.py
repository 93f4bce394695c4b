"""Visual features that a decoder adds after its first layers, kept in place when layers go.

The decoder adds ``deepstack_visual_embeds[i]`` after the layer at POSITION i, so removing an early layer moves the
additions. With a removed layer as an identity, feature l is added to what came out of the last kept layer up to l, or
to the input embeddings where there is none. The hook hands the decoder its features in that arrangement; two of them
that fall on one place are summed, which changes rounding (1e-6), nothing else.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["has_deepstack", "keep_in_place"]

FEATURES, PLACES = "deepstack_visual_embeds", "visual_pos_masks"


def has_deepstack(decoder: nn.Module) -> bool:
    """Whether the decoder adds visual features by the position of its layers."""
    forward = getattr(type(decoder), "forward", None)
    return forward is not None and FEATURES in inspect.signature(forward).parameters


def keep_in_place(decoder: nn.Module, kept: Sequence[int]) -> Callable[[], None]:
    """Install the hook for a decoder that has only the layers `kept` (ids before, ascending); returns its removal."""
    kept = tuple(kept)

    def arrange(_module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        features = kwargs.get(FEATURES)
        if features is None:
            return args, kwargs
        places: dict[int, Any] = {}
        for layer, feature in enumerate(features):
            position = bisect_right(kept, layer) - 1  # -1: no layer up to this one is left
            places[position] = feature if position not in places else places[position] + feature.to(places[position])
        kwargs = dict(kwargs)
        if (first := places.pop(-1, None)) is not None:
            embeds, where = kwargs["inputs_embeds"].clone(), kwargs[PLACES]
            embeds[where.to(embeds.device), :] += first.to(embeds)
            kwargs["inputs_embeds"] = embeds
        kwargs[FEATURES] = [places[position] for position in sorted(places)]  # positions follow each other without gaps
        return args, kwargs

    return decoder.register_forward_pre_hook(arrange, with_kwargs=True).remove
