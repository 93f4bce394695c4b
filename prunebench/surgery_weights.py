"""New values for parameters of layers that stay. The old parameter objects are never written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

from prunebench.errors import PlanError
from prunebench.ops import Fold, Merge, SetWeights
from prunebench.surgery_modules import need_memory, parameter_like

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Changes", "folded", "given", "merged", "put", "shared_modules"]


class Changes(Protocol):
    """Attributes that are set, so that they can be set back."""

    def assign(self, owner: Any, name: str, value: Any) -> None: ...


def merged(op: Merge, layers: Mapping[int, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameter name in layer ``op.into`` → the sum of the sources, added up in float32 in the order of the sources.

    Raises:
        PlanError: layers of different kinds, or a pattern that names nothing.
    """
    into = dict(layers[op.into].named_parameters(remove_duplicate=False))
    sources = [dict(layers[source].named_parameters(remove_duplicate=False)) for source in op.sources]
    for pattern in op.parameters:
        if not any(fnmatchcase(name, pattern) for name in into):
            raise PlanError(
                f"no parameter of layer {op.into} is called {pattern!r}: less would be merged than the plan says"
            )
    names = [n for n in into if not op.parameters or any(fnmatchcase(n, pattern) for pattern in op.parameters)]
    need_memory(layers[op.into], op.into)
    for number, source in zip(op.sources, sources, strict=True):
        need_memory(layers[number], number)
        for name in names:
            if name not in source or source[name].shape != into[name].shape:
                raise PlanError(
                    f"layers {number} and {op.into} are of different kinds ({name} differs): they cannot be merged"
                )
    return {name: _sum(op, into[name], [source[name] for source in sources]) for name in names}


def _sum(op: Merge, into: nn.Parameter, values: list[nn.Parameter]) -> nn.Parameter:
    import torch

    wide = torch.promote_types(into.dtype, torch.float32)
    total = torch.zeros(into.shape, dtype=wide, device=into.device)
    for coefficient, value in zip(op.coefficients, values, strict=True):
        total += coefficient * value.detach().to(device=into.device, dtype=wide)
    return parameter_like(into, total)


def folded(op: Fold, layer: nn.Module, matrix: Tensor) -> dict[str, nn.Parameter]:
    """Parameter name → M W (and M b), or W M; computed in the wider of the matrix's format and float32.

    Raises:
        PlanError: no such linear module, or a matrix of another size.
    """
    import torch

    module = dict(layer.named_modules()).get(op.module)
    if not isinstance(module, torch.nn.Linear):
        what = "no such module" if module is None else f"{type(module).__name__}, which is not linear"
        raise PlanError(f"a matrix is to be folded into {op.module!r} of layer {op.layer}, which has {what}")
    need_memory(module, op.layer)
    size = module.out_features if op.side == "out" else module.in_features
    if tuple(matrix.shape) != (size, size):
        raise PlanError(
            f"the matrix {op.tensor!r} for {op.module} of layer {op.layer} has shape {tuple(matrix.shape)}: "
            f"side {op.side!r} wants ({size}, {size})"
        )
    wide = torch.promote_types(matrix.dtype, torch.float32)
    factor, weight = (value.detach().to(module.weight.device, wide) for value in (matrix, module.weight))
    product = factor @ weight if op.side == "out" else weight @ factor
    new = {f"{op.module}.weight": parameter_like(module.weight, product)}
    if op.side == "out" and module.bias is not None:
        new[f"{op.module}.bias"] = parameter_like(module.bias, factor @ module.bias.detach().to(factor))
    return new


def given(op: SetWeights, layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Parameter name → the values of the plan.

    Raises:
        PlanError: no such parameter, or another shape.
    """
    old = dict(layer.named_parameters(remove_duplicate=False))
    need_memory(layer, op.layer)
    for name, value in sorted(tensors.items()):
        if name not in old:
            raise PlanError(f"layer {op.layer} has no parameter {name!r}: the plan holds '{op.tensors}.{name}'")
        if tuple(value.shape) != tuple(old[name].shape):
            raise PlanError(
                f"layer {op.layer}: '{op.tensors}.{name}' has shape {tuple(value.shape)}, "
                f"the model wants {tuple(old[name].shape)}"
            )
    return {name: parameter_like(old[name], value) for name, value in tensors.items()}


def put(
    layer: nn.Module,
    number: int,
    values: Mapping[str, nn.Parameter],
    shared: frozenset[int],
    changes: Changes,
    tied: bool = True,
) -> None:
    """Put parameters into the place of others; with `tied`, also under other names that they have in this layer."""
    before = dict(layer.named_parameters(remove_duplicate=False))
    for name, new in values.items():
        same = [other for other in before if tied and before[other] is before[name] and other not in values]
        for each in (name, *same):
            path, _, own = each.rpartition(".")
            owner = layer.get_submodule(path)
            if id(owner) in shared:
                raise PlanError(
                    f"layer {number} shares {path or 'itself'!r} with another layer: neither can be changed"
                )
            changes.assign(owner, own, new)


def shared_modules(layers: Any) -> frozenset[int]:
    """Modules that stand in several places: changing one would change the others."""
    counts = Counter(id(module) for layer in layers for module in layer.modules())
    return frozenset(module for module, count in counts.items() if count > 1)
