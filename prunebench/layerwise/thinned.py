"""What thinners answer, as operations and tensors of a plan: masks as bits, new values where a method gives any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunebench.bits import pack
from prunebench.errors import PlanError
from prunebench.kinds import n_of_m
from prunebench.layerwise.contract import Thinned
from prunebench.ops import Mask, Op, SetWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["layer_ops"]


def layer_ops(
    layer: int, linears: Mapping[str, nn.Linear], answers: Mapping[str, Thinned], pattern: str
) -> tuple[list[Op], dict[str, Tensor], int]:
    """Operations on a layer, the plan's tensors that they read, and how many weights become zero.

    The tensors are on the CPU in memory of their own; new values in the format of the model.

    Raises:
        PlanError: an answer for a module that is not there, of another shape or type, or off the pattern.
    """
    import torch

    ops: list[Op] = []
    tensors: dict[str, Tensor] = {}
    zeros, masks, weights = 0, f"keep.{layer}", f"weights.{layer}"
    with torch.inference_mode(False), torch.no_grad():  # what is kept has to be of use outside of it too
        for name, answer in answers.items():
            if name not in linears:
                raise PlanError(f"layer {layer} has no linear module {name!r} to thin")
            old = linears[name].weight
            _check(f"layer {layer} {name}", old, answer, pattern)
            if gone := int((~answer.keep).sum()):
                tensors[f"{masks}.{name}.weight"] = pack(answer.keep)
                zeros += gone
            if answer.weight is not None:
                tensors[f"{weights}.{name}.weight"] = answer.weight.detach().to("cpu", old.dtype, copy=True)
    if any(key.startswith(f"{weights}.") for key in tensors):
        ops.append(SetWeights(layer=layer, tensors=weights))
    if zeros:
        ops.append(Mask(layer=layer, tensors=masks, zeros=zeros, pattern=pattern))
    return ops, tensors, zeros


def _check(where: str, old: Tensor, answer: Thinned, pattern: str) -> None:
    import torch

    if not isinstance(answer, Thinned):
        raise PlanError(f"{where}: the answer is {type(answer).__name__}, it has to be Thinned")
    if answer.keep.dtype != torch.bool or answer.keep.shape != old.shape:
        raise PlanError(
            f"{where}: keep is {answer.keep.dtype} {tuple(answer.keep.shape)}, it has to be bool {tuple(old.shape)}"
        )
    if answer.weight is not None and answer.weight.shape != old.shape:
        raise PlanError(f"{where}: the new weight has shape {tuple(answer.weight.shape)}, not {tuple(old.shape)}")
    if answer.weight is not None and not bool(answer.weight.isfinite().all()):
        raise PlanError(f"{where}: a new weight is not finite: try --dtype float32, or more damping")
    if (both := n_of_m(pattern)) is None:
        return
    stay, of = both
    if old.shape[1] % of:
        raise PlanError(f"{where}: {old.shape[1]} columns are no multiple of {of}, as the pattern {pattern} needs")
    if int(answer.keep.unflatten(1, (-1, of)).sum(-1).max()) > stay:
        raise PlanError(f"{where}: more than {stay} of {of} neighbours stay, which is off the pattern {pattern}")
