"""What the surgery puts into a decoder: modules for a part that is gone and for a block of layers, and parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.errors import PlanError
from prunebench.layer_parts import LayerPart, gives_tuple
from prunebench.ops import ReplaceBlock
from prunebench.plan_tensors import FORMATS

__all__ = ["FeedForward", "LinearMap", "NoPart", "activation_name", "need_memory", "parameter_like", "replacement"]

KINDS = ("attention_type", "layer_type", "block_type", "is_sliding")
"""What some decoders ask a layer for before they call it, to choose its mask by."""


class NoPart(nn.Module):
    """Stands for attention or an MLP that is gone: adds nothing to the residual stream, and takes no memory.

    Plain settings of the module before it (a layer's forward pass may ask for them) are kept.
    """

    def __init__(self, before: nn.Module, part: LayerPart) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(before).items() if isinstance(value, (bool, int, float, str))}
        plain = {name: value for name, value in plain.items() if not name.startswith("_") and name != "layer_idx"}
        vars(self).update(plain)
        self.returns = part.returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        zeros = states.new_zeros(()).expand_as(states)
        return zeros if self.returns == 1 else (zeros, *[None] * (self.returns - 1))


class FeedForward(nn.Module):
    """down(activation(up(h))), without residual and norm: stands for a block of layers.

    Args:
        hidden_size: d.
        inner_size: width between the two linear maps.
        activation: by transformers' name.
        bias: whether the maps have one: both, or ``(up, down)``.
    """

    def __init__(self, hidden_size: int, inner_size: int, activation: str, bias: bool | tuple[bool, bool]) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        biases = bias if isinstance(bias, tuple) else (bias, bias)
        self.up = nn.Linear(hidden_size, inner_size, bias=biases[0])
        self.activation = ACT2FN[activation]
        self.down = nn.Linear(inner_size, hidden_size, bias=biases[1])
        self.in_tuple = False

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """(batch, tokens, d) to the same; what else a decoder hands to its layers is of no concern here."""
        out = self.down(self.activation(self.up(hidden_states.to(self.up.weight.device))))
        return (out,) if self.in_tuple else out


class LinearMap(nn.Linear):
    """One linear map, (d, d): stands for a block of layers."""

    in_tuple = False

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:  # type: ignore[override]
        out = super().forward(hidden_states.to(self.weight.device))
        return (out,) if self.in_tuple else out


def activation_name(config: Any) -> str:
    """The decoder's activation as its configuration calls it.

    Raises:
        PlanError: it names none.
    """
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(value := getattr(config, name, None), str):
            return value
    raise PlanError(
        f"the configuration of {getattr(config, 'model_type', type(config).__name__)!r} names no activation: "
        "a feed-forward network cannot stand for its layers"
    )


def need_memory(layer: nn.Module, number: int) -> None:
    """Refuse a layer whose weights lie elsewhere, or are not plain numbers.

    Raises:
        PlanError: they are offloaded or quantised.
    """
    for parameter in layer.parameters():
        if parameter.is_meta:
            raise PlanError(f"the weights of layer {number} are offloaded and cannot be changed: load them into memory")
        if (kind := str(parameter.dtype).removeprefix("torch.")) not in FORMATS:
            raise PlanError(
                f"the weights of layer {number} are quantised ({kind}) and cannot be changed: "
                f"load a checkpoint in one of {', '.join(FORMATS)}"
            )


def parameter_like(old: nn.Parameter, value: Tensor) -> nn.Parameter:
    """`value` as a parameter of its own memory, in the place and number format of `old`.

    Raises:
        PlanError: a number is too large for float16, whose range is the only one that weights leave.
    """
    new = value.detach().to(device=old.device, dtype=old.dtype, copy=True).contiguous()
    if new.dtype == torch.float16 and not new.is_meta and not new.isfinite().all():
        raise PlanError("the plan gives a weight that is too large for float16: use --dtype bfloat16 or float32")
    return nn.Parameter(new, requires_grad=old.requires_grad)


def replacement(op: ReplaceBlock, layer: nn.Module, config: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module that comes to stand in slot ``op.start``.

    Args:
        op: what to make.
        layer: the one that stands there: the new module is on its device, in its number format.
        config: of the decoder.
        tensors: parameter name → values.

    Raises:
        PlanError: a parameter is missing, left over, or of another shape; or the weights of `layer` are not in memory.
    """
    need_memory(layer, op.start)
    if op.module == "decoder_layer":
        new = _like(layer, tensors, op)
    else:
        with torch.device("meta"):
            new = _empty(op, config, tensors)
        # Scalars and vectors (of a norm, of a recurrence) may be in a wider format than the states: a matrix is not.
        like = max(layer.parameters(), key=Tensor.numel)
        expected = dict(new.named_parameters())
        _check(op, tensors, {name: tuple(p.shape) for name, p in expected.items()})
        for name in expected:
            owner, _, own = name.rpartition(".")
            setattr(new.get_submodule(owner), own, parameter_like(like, tensors[name]))
        new.in_tuple = gives_tuple(layer)  # type: ignore[assignment]
        vars(new).update({name: getattr(layer, name) for name in KINDS if hasattr(layer, name)})
    return new.train(layer.training)


def _empty(op: ReplaceBlock, config: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    width = int(config.hidden_size)
    if op.module == "linear":
        return LinearMap(width, width, bias="bias" in tensors)
    up = tensors.get("up.weight")
    if up is None or up.dim() != 2:
        raise PlanError(f"the feed-forward network for layer {op.start} needs the tensor '{op.tensors}.up.weight'")
    biases = ("up.bias" in tensors, "down.bias" in tensors)
    return FeedForward(width, int(up.shape[0]), activation_name(config), biases)


def _like(layer: nn.Module, tensors: Mapping[str, Tensor], op: ReplaceBlock) -> nn.Module:
    """A copy of the layer with other parameters; those of the layer are never copied."""
    old = dict(layer.named_parameters(remove_duplicate=False))
    _check(op, tensors, {name: tuple(p.shape) for name, p in old.items()})
    memo: dict[int, Any] = {id(parameter): parameter_like(parameter, tensors[name]) for name, parameter in old.items()}
    memo.update({id(config): config for config in _configs(layer)})  # shared, so that it says what it says for all
    return copy.deepcopy(layer, memo)


def _configs(layer: nn.Module) -> Iterator[Any]:
    for module in layer.modules():
        if (config := vars(module).get("config")) is not None:
            yield config


def _check(op: ReplaceBlock, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    where = f"the {op.module} for layer {op.start}"
    if missing := sorted(set(expected) - set(tensors)):
        raise PlanError(f"{where} lacks the tensor '{op.tensors}.{missing[0]}' ({len(missing)} missing)")
    if unknown := sorted(set(tensors) - set(expected)):
        raise PlanError(f"{where} has no parameter {unknown[0]!r}: the plan holds '{op.tensors}.{unknown[0]}'")
    for name, shape in sorted(expected.items()):
        if tuple(tensors[name].shape) != shape:
            raise PlanError(
                f"{where}: '{op.tensors}.{name}' has shape {tuple(tensors[name].shape)}, the model wants {shape}"
            )
