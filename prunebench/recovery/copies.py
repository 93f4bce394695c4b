"""Trainable copies of parameters in the place of the model's own, for the length of a ``with`` block.

The modules stay what they are, with their hooks and places; only their parameters are stood in for. The model's own
parameters are never written to, so that it is bit for bit what it was, also after an exception or a Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["all_names", "trainable_copies"]


@contextmanager
def trainable_copies(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> Iterator[dict[str, dict[str, nn.Parameter]]]:
    """Stand in for the parameters of `modules`; every other parameter of `model` takes no gradient meanwhile.

    Args:
        model: the whole model.
        modules: name → module of it; none holds another.

    Yields:
        module name → parameter name within it → the trainable copy.
    """
    import torch

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    places: list[tuple[dict, str, nn.Parameter]] = []
    copies: dict[int, nn.Parameter] = {}
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, module in modules.items():
            found[name] = {}
            for path, part in module.named_modules():
                for own, parameter in list(part._parameters.items()):
                    if parameter is None:
                        continue
                    if id(parameter) not in copies:  # one that is tied stays tied
                        copies[id(parameter)] = torch.nn.Parameter(parameter.detach().clone())
                        found[name][f"{path}.{own}" if path else own] = copies[id(parameter)]
                    places.append((part._parameters, own, parameter))
                    part._parameters[own] = copies[id(parameter)]
        yield found
    finally:
        for owner, own, parameter in reversed(places):
            owner[own] = parameter
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def all_names(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` by every name that their parameters have in `module`: one that is tied has several."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: values[first[id(parameter)]] for name, parameter in every if first[id(parameter)] in values}
