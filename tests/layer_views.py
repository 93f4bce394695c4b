"""Layers made by hand, as the layerwise sweep shows them to a method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunebench.layerwise import LayerView, LinearView


def make_view(
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor] | Tensor,
    *,
    layer: int = 0,
    tokens: Tensor | None = None,
) -> LayerView:
    """A layer whose modules were given `inputs`, (tokens, in), with weights `tokens` (1 by default).

    Modules that were given the same tensor share the Hessian, as they do in the sweep.
    """
    view, shared = LayerView(layer), {}
    for name, weight in weights.items():
        x = inputs if isinstance(inputs, Tensor) else inputs[name]
        if id(x) not in shared:
            a = torch.ones(len(x), dtype=torch.float64) if tokens is None else tokens.double()
            wide = x.double()
            hessian = (wide.T @ (a[:, None] * wide)).float()
            shared[id(x)] = (a @ wide.square(), hessian, float(a.sum()))
        squares, hessian, total = shared[id(x)]
        view.linears[name] = LinearView(name, weight, squares, hessian, total)
    return view


def correlated(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """(tokens, columns) inputs of which some are sums of others and some are much larger, as in a language model."""
    made = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns, generator=made) @ torch.randn(columns, columns, generator=made)
    return mixed * torch.exp(torch.randn(columns, generator=made))
