"""The truth that pruning is held against: a removed layer does nothing."""

from __future__ import annotations

from contextlib import contextmanager

from torch import nn

__all__ = ["identity_in_place"]


class Identity(nn.Module):
    def forward(self, hidden_states, *_args, **_kwargs):
        return hidden_states


@contextmanager
def identity_in_place(loaded, drop):
    """Layers `drop` pass the hidden state through; the others keep their places, numbers and masks."""
    layers = loaded.layers
    originals = {layer: layers[layer] for layer in drop}
    for layer in drop:
        layers[layer] = Identity()
    try:
        yield
    finally:
        for layer, original in originals.items():
            layers[layer] = original
