"""Smaller matrices and masked ones. The old parameter objects are never written to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunebench.bits import unpack
from prunebench.coupled import CoupledGroups, Coupling, coupled_groups
from prunebench.errors import PlanError
from prunebench.ops import Mask, Slice
from prunebench.surgery_modules import need_memory, parameter_like

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["SIZES", "Setting", "cut", "masked", "sliced"]

SIZES = {
    "query": ("num_heads", "num_attention_heads", "n_heads", "n_head"),
    "heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "query width": ("q_size", "embed_dim", "inner_dim"),
    "channels": ("intermediate_size", "ffn_dim", "inner_dim"),
}
"""What modules call their own number of query heads, of key-value heads, of query features, and of channels."""

Setting = tuple[Any, str, int]
"""(module, attribute, new value)"""


def sliced(
    op: Slice, layer: nn.Module, config: Any, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, nn.Parameter], list[Setting]]:
    """Parameter name → the rows or columns that stay, and what the modules then have to say of their sizes.

    Args:
        op: what to cut.
        layer: the decoder layer; not changed.
        config: of the decoder.
        tensors: ``heads`` and ``channels`` → packed bits.

    Raises:
        PlanError: a part that cannot be narrowed, other numbers than the model's, or a tied parameter.
    """
    need_memory(layer, op.layer)
    groups = coupled_groups(layer, config)
    new: dict[str, nn.Parameter] = {}
    settings: list[Setting] = []
    removed = 0
    for word, (kept, of) in op.widths().items():
        found = groups.need(word, op.layer)  # type: ignore[arg-type]
        if found.groups != of:
            raise PlanError(f"layer {op.layer} has {found.groups} {_name(word)}, the plan slices {of}: plan anew")
        keep = _bits(tensors[word], of, f"'{op.tensors}.{word}' of layer {op.layer}")
        if tuple(keep.shape) != (of,) or int(keep.sum()) != kept:
            raise PlanError(
                f"layer {op.layer}: '{op.tensors}.{word}' keeps {int(keep.sum())} of {keep.numel()}, "
                f"the operation says {kept} of {of}"
            )
        removed += (of - kept) * found.params_per_group
        if kept == of:
            continue
        values, sizes = cut(groups, word, layer, keep.nonzero().flatten())
        new.update(values)
        settings += sizes
    if removed != op.params_removed:
        raise PlanError(
            f"slicing layer {op.layer} removes {removed} parameters, the operation says {op.params_removed}: plan anew"
        )
    _refuse_tied(layer, new, op.layer)
    return new, settings


def cut(
    groups: CoupledGroups, word: str, layer: nn.Module, keep: Tensor
) -> tuple[dict[str, nn.Parameter], list[Setting]]:
    """Parameter name → the rows or columns of some groups, and the sizes that modules then have; meta tensors will do.

    Args:
        groups: of the layer.
        word: ``heads`` or ``channels``.
        layer: a decoder layer; not changed.
        keep: (kept,) numbers of the groups that stay, ascending, on the CPU.
    """
    import torch

    found: Coupling = getattr(groups, word)
    new: dict[str, nn.Parameter] = {}
    settings: list[Setting] = []
    for member in found.members:
        module: Any = layer.get_submodule(member.module)
        index = (
            (keep[:, None] * member.width + torch.arange(member.width, device="cpu")).flatten().to(module.weight.device)
        )
        rows = member.axis == "out"
        weight = module.weight.detach().index_select(0 if rows else 1, index)
        new[f"{member.module}.weight"] = parameter_like(module.weight, weight)
        if rows and module.bias is not None:
            new[f"{member.module}.bias"] = parameter_like(module.bias, module.bias.detach()[index])
        settings.append((module, f"{member.axis}_features", len(index)))
    sizes = {word: (found.groups, len(keep))}
    if word == "heads":
        per_group = groups.query_heads, groups.query_heads * groups.head_dim
        sizes["query"], sizes["query width"] = ((found.groups * n, len(keep) * n) for n in per_group)
    module = layer.get_submodule(found.part)
    for kind, (old, size) in sizes.items():
        settings += [(module, name, size) for name in SIZES[kind] if vars(module).get(name) == old]
    return new, settings


def _refuse_tied(layer: nn.Module, new: Mapping[str, nn.Parameter], number: int) -> None:
    """A parameter under two names would be cut under one of them only."""
    old = dict(layer.named_parameters(remove_duplicate=False))
    for name in new:
        if tied := next((other for other in old if other != name and old[other] is old[name]), None):
            raise PlanError(f"layer {number}: {name!r} is the same parameter as {tied!r}: it cannot be sliced")


def masked(op: Mask, layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Parameter name → the same values, with zeros where the plan's bits are 0.

    Args:
        op: what to mask.
        layer: as it stands after everything else that the plan does to it.
        tensors: parameter name → packed bits.

    Raises:
        PlanError: no such parameter, bits of another width, a broken pattern, or another number of zeros.
    """
    import torch

    old = dict(layer.named_parameters(remove_duplicate=False))
    need_memory(layer, op.layer)
    new, zeros = {}, 0
    for name, packed in sorted(tensors.items()):
        if name not in old:
            raise PlanError(f"layer {op.layer} has no parameter {name!r}: the plan holds '{op.tensors}.{name}'")
        shape = tuple(old[name].shape)
        where = f"'{op.tensors}.{name}' of layer {op.layer}"
        if not shape or tuple(packed.shape[:-1]) != shape[:-1]:
            raise PlanError(f"{where} holds bits of shape {tuple(packed.shape)} for a parameter of shape {shape}")
        keep = _bits(packed, shape[-1], where)
        _check_pattern(op.pattern, keep, where)
        zeros += int(keep.numel() - keep.sum())
        value = old[name].detach()
        new[name] = parameter_like(old[name], torch.where(keep.to(value.device), value, torch.zeros_like(value)))
    if zeros != op.zeros:
        raise PlanError(f"the mask of layer {op.layer} zeroes {zeros} weights, the operation says {op.zeros}")
    return new


def _bits(packed: Tensor, columns: int, where: str) -> torch.Tensor:
    try:
        return unpack(packed, columns)
    except ValueError as error:
        raise PlanError(f"{where}: {error}") from error


def _check_pattern(pattern: str, keep: Tensor, where: str) -> None:
    if pattern == "unstructured":
        return
    most, block = map(int, pattern.split(":"))
    if keep.shape[-1] % block:
        raise PlanError(f"{where}: {keep.shape[-1]} columns are no multiple of {block}, so {pattern} cannot hold")
    if int(keep.unflatten(-1, (-1, block)).sum(-1).max()) > most:
        raise PlanError(f"{where} keeps more than {most} of {block} neighbours: the mask is not {pattern}")


def _name(word: str) -> str:
    return "key-value heads" if word == "heads" else "MLP channels"
