"""Which modules of a decoder layer are thinned, and which hold weights but cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench.errors import CalibrationError
from prunebench.plan_tensors import FORMATS

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_in_memory", "linear_modules", "not_linear"]


def linear_modules(layer: nn.Module) -> dict[str, nn.Linear]:
    """Path in the layer → linear module with weights in plain numbers, in the order of the layer's own module tree."""
    from torch import nn

    return {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear) and _plain(m.weight)}


def not_linear(layers: Sequence[nn.Module]) -> str:
    """What holds matrices of weights in these layers and is no linear module, in a line; empty where there is nothing.

    Fused experts, convolutions, linear modules with quantised weights. Vectors (of norms, biases) are not meant.
    """
    found: dict[str, list[int]] = {}
    for number, layer in enumerate(layers):
        linear = {id(module) for module in linear_modules(layer).values()}
        for name, module in layer.named_modules():
            if id(module) not in linear and any(map(_matrix, _own(module))):
                found.setdefault(f"{name} ({type(module).__name__})", []).append(number)
    return ", ".join(f"{name} in {_counted(numbers, len(layers))}" for name, numbers in found.items())


def check_in_memory(layers: Sequence[nn.Module]) -> None:
    """Refuse layers whose weights are not in memory, or that have nothing to thin.

    Raises:
        CalibrationError: offloaded weights, or no layer with a linear module.
    """
    if any(p.is_meta for layer in layers for p in layer.parameters()):
        raise CalibrationError(
            "layers are offloaded (device_map), and weights that are not in memory cannot be asked about: "
            "load the model on one device that holds it"
        )
    if not any(map(linear_modules, layers)):
        others = not_linear(layers)
        raise CalibrationError(
            f"no decoder layer has a linear module with plain weights{f', only {others}' if others else ''}: this "
            "method cannot thin the model; load a checkpoint that is not quantised, or choose a method for layers"
        )


def _plain(weight: Tensor) -> bool:
    return weight.dim() == 2 and str(weight.dtype).removeprefix("torch.") in FORMATS


def _own(module: nn.Module) -> list[Tensor]:
    """Parameters, and whole numbers beside them: those are what quantised weights are kept as."""
    import torch

    whole = (torch.int8, torch.uint8, torch.int16, torch.int32)
    return [*module.parameters(recurse=False), *(b for b in module.buffers(recurse=False) if b.dtype in whole)]


def _matrix(tensor: Tensor) -> bool:
    return tensor.dim() >= 2


def _counted(numbers: list[int], of: int) -> str:
    if len(numbers) == of:
        return "all layers"
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} of {of} layers"
