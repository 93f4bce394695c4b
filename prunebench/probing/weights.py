"""Sums over the weights of each layer: of their sizes, and of their first-order effects on the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import CalibrationError
from prunebench.layer_parts import layer_parts
from prunebench.ops import PARTS
from prunebench.probing.measures import mean_by_row, nll

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import LoadedModel
    from prunebench.probing.counts import Counts
    from prunebench.probing.questions import Batch

__all__ = ["added", "check_weights", "finite_losses", "gradient_sums", "only_these_require", "weight_sums"]


def weight_sums(loaded: LoadedModel) -> dict[str, np.ndarray]:
    """Σ_w |w| per layer and part, float64.

    Raises:
        CalibrationError: weights that are offloaded or quantised.
    """
    import torch

    check_weights(loaded, gradients=False)
    with torch.no_grad():
        return _by_layer(loaded, {p: float(p.abs().sum(dtype=torch.float64)) for p in _parameters(loaded)})


def gradient_sums(loaded: LoadedModel, made: Iterable[Batch], n_samples: int, counts: Counts) -> dict[str, np.ndarray]:
    """Σ_w |w · Σ_batches g| per layer and part, where the loss is the mean of the samples' mean losses.

    Gradients are added up in float32 in memory of their own; ``.grad`` of a parameter is neither read nor written.

    Raises:
        CalibrationError: weights that gradients cannot be trusted of, or a loss that is not finite.
    """
    import torch

    check_weights(loaded, gradients=True)
    parameters = list(_parameters(loaded))
    sums: list[Tensor | None] = [None] * len(parameters)
    with only_these_require(loaded.model, parameters), torch.enable_grad():
        for batch in made:
            losses = finite_losses(loaded, batch)
            found = torch.autograd.grad(losses.sum() / n_samples, parameters, allow_unused=True)
            for index, gradient in enumerate(found):
                if gradient is not None:  # an expert that no token went through has none
                    sums[index] = added(sums[index], gradient.float())
            counts.add(loaded.info.n_layers, len(batch.rows), batch.inputs.n_tokens)
            counts.backward_passes += len(batch.rows)
    with torch.no_grad():
        values = {
            p: 0.0 if gradient is None else float((p.float() * gradient).abs().sum(dtype=torch.float64))
            for p, gradient in zip(parameters, sums, strict=True)
        }
    return _by_layer(loaded, values)


def finite_losses(loaded: LoadedModel, batch: Batch) -> Tensor:
    """Mean loss of each sample's tokens, (batch,), float64, with the graph that gradients need.

    Raises:
        CalibrationError: one is not finite.
    """
    import torch

    logits = loaded.adapter.forward(loaded, batch.inputs, logits_to_keep=batch.keep)
    losses = mean_by_row(*nll(logits, batch.targets), len(batch.rows))
    if not torch.isfinite(losses).all():
        raise CalibrationError("the loss is not finite: try --dtype float32, or look at the weights")
    return losses


def added(total: Tensor | None, more: Tensor) -> Tensor:
    """The sum, in the memory of `total` where there is one already."""
    return more if total is None else total.add_(more)


def _parameters(loaded: LoadedModel) -> Iterator[nn.Parameter]:
    return iter({id(p): p for layer in loaded.layers for p in layer.parameters()}.values())


def _by_layer(loaded: LoadedModel, values: dict[Any, float]) -> dict[str, np.ndarray]:
    sums = {name: np.full(len(loaded.layers), np.nan) for name in ("layer", *PARTS)}
    for number, layer in enumerate(loaded.layers):
        sums["layer"][number] = sum(values[p] for p in layer.parameters())
        for name, part in layer_parts(layer).items():
            sums[name][number] = sum(values[p] for p in getattr(layer, part.child).parameters())
    return sums


@contextmanager
def only_these_require(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters alone; flags as before afterwards."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def check_weights(loaded: LoadedModel, *, gradients: bool) -> None:
    """Refuse weights that cannot be asked about.

    Raises:
        CalibrationError: they are offloaded, quantised, or of too small a range where `gradients` are wanted.
    """
    import torch

    for p in _parameters(loaded):
        if p.device.type == "meta":
            raise CalibrationError(
                "layers are offloaded (device_map), and weights that are not in memory cannot be asked about: "
                "load the model on one device that holds it"
            )
        if not p.is_floating_point():
            raise CalibrationError(
                f"weights are quantised ({p.dtype}): load the model in --dtype float32 or bfloat16 for this method"
            )
        if gradients and p.dtype == torch.float16:
            raise CalibrationError("float16 has too small a range for gradients: use --dtype float32 or bfloat16")
