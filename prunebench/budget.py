"""How much to remove: what was asked, and what that came to in every unit.

"50 % sparsity" means half of the decoder layers here; 50 % of the layers is 41.8 % of LLaVA-NeXT-8B's parameters and
29.7 % of Qwen2-VL-2B's. So a budget is asked in one unit and reported in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from prunebench.errors import BudgetError, PlanError
from prunebench.model_info import Cost, ModelInfo
from prunebench.ops import (
    Mask,
    Op,
    ReplaceBlock,
    Slice,
    removed_layers,
    removed_sublayers,
    tensor_names,
    without_attention,
)
from prunebench.plan_parts import without_default

__all__ = ["ROUNDING", "Achieved", "Budget", "BudgetReport", "achieved", "kv_bytes_per_token"]

ROUNDING = "nearest, halves up"


class Achieved(BaseModel):
    """Removed share of each quantity, in [0, 1], and the integers behind it."""

    model_config = ConfigDict(frozen=True)

    layers_removed: int
    layers: float
    lm_params: float
    model_params: float
    params_removed: int
    bytes: float
    prefill_flops: float
    kv_bytes_per_token: float
    sublayers_removed: int = Field(default=0, description="attention or MLP parts that go from layers that stay")
    params_zeroed: int = Field(default=0, description="weights that become zero and stay where they are")

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the zeros where there are none: such a plan reads as it always did."""
        return without_default(self, handler(self), "params_zeroed")


class Budget(BaseModel):
    """A request: ``Budget(value=0.5)`` is half of the layers, ``Budget(value=8, unit="layers")`` eight of them."""

    model_config = ConfigDict(frozen=True)

    value: float
    unit: Literal["sparsity", "layers"] = "sparsity"

    def model_post_init(self, _context: object) -> None:
        if self.unit == "sparsity" and not 0.0 <= self.value < 1.0:
            raise BudgetError(
                f"sparsity must lie in [0, 1), got {self.value:g}: 0.5 removes half of the decoder layers"
            )
        if self.unit == "layers" and not (self.value >= 0 and self.value.is_integer()):
            raise BudgetError(f"the number of layers must be a whole number >= 0, got {self.value:g}")

    def layers_asked(self, n_layers: int) -> int:
        """How many of `n_layers` decoder layers this budget removes (rounding: nearest, halves up).

        Raises:
            BudgetError: no layer would be left.
        """
        # The small term keeps 0.35 * 20 = 6.999999999999999 from being rounded as if it lay below 7.
        nearest = math.floor(self.value * n_layers + 0.5 + 1e-9)
        count = int(self.value) if self.unit == "layers" else nearest
        if count >= n_layers > 0:
            raise BudgetError(f"{self} asks for {count} of {n_layers} decoder layers: at least one has to stay")
        return count

    def __str__(self) -> str:
        return f"sparsity {self.value:g}" if self.unit == "sparsity" else f"{int(self.value)} layers"


class BudgetReport(BaseModel):
    """What was asked and what was achieved."""

    model_config = ConfigDict(frozen=True)

    asked: Budget
    layers_asked: int
    rounding: str = ROUNDING
    achieved: Achieved = Field(description="shares are of the dense model")


def achieved(
    model: ModelInfo,
    removed: Iterable[int] = (),
    *,
    ops: Sequence[Op] = (),
    tensors: Mapping[str, Any] | None = None,
) -> Achieved:
    """What a plan takes away, in every unit: removed layers and parts, less what is put in their place.

    Args:
        model: the dense model.
        removed: original ids of whole layers that go, beside those that `ops` remove.
        ops: operations; changed weights cost what the old ones did, and so do zeros.
        tensors: those of the plan, for the size of new modules.

    Raises:
        PlanError: what a part costs is not known.
    """
    whole = sorted({*removed, *removed_layers(ops)})
    parts = [(layer, part) for layer, part in removed_sublayers(ops) if layer not in whole]
    new = [op for op in ops if isinstance(op, ReplaceBlock) and op.module != "decoder_layer"]
    gone: list[Cost] = [model.layers[layer] for layer in whole]
    gone += [_part_cost(model, layer, part) for layer, part in parts]
    gone += [model.layers[op.start] for op in new]
    gone += [_slice_cost(model, op) for op in ops if isinstance(op, Slice)]
    put = [_new_cost(model, op, tensors or {}) for op in new]

    def net(name: str) -> Any:
        return sum(getattr(cost, name) for cost in gone) - sum(getattr(cost, name) for cost in put)

    def share(part: float, total: float) -> float:
        return part / total if total else 0.0

    return Achieved(
        layers_removed=len(whole),
        layers=share(len(whole), model.n_layers),
        lm_params=share(net("params"), model.lm_params),
        model_params=share(net("params"), model.model_params),
        params_removed=net("params"),
        bytes=share(net("bytes"), model.model_bytes),
        prefill_flops=share(net("prefill_flops"), model.lm_prefill_flops),
        kv_bytes_per_token=share(net("kv_bytes_per_token"), model.kv_bytes_per_token),
        sublayers_removed=len(parts),
        params_zeroed=sum(op.zeros for op in ops if isinstance(op, Mask)),
    )


def kv_bytes_per_token(model: ModelInfo, ops: Sequence[Op]) -> int:
    """Bytes of keys and values that one token takes in the layers that stay, after `ops`.

    Args:
        model: the dense model.
        ops: of a plan.
    """
    without = removed_layers(ops) | without_attention(ops)
    kept = sum(cost.kv_bytes_per_token for layer, cost in enumerate(model.layers) if layer not in without)
    return kept - sum(_kv_sliced(model, op) for op in ops if isinstance(op, Slice))


def _kv_sliced(model: ModelInfo, op: Slice) -> int:
    """Bytes of keys and values per token that slicing takes away: whole key-value heads, all of one size."""
    kept, of = op.heads or (1, 1)
    return model.layers[op.layer].kv_bytes_per_token * (of - kept) // of


def _slice_cost(model: ModelInfo, op: Slice) -> Cost:
    """Of what goes. All linear maps of a part shrink by the same share, and so do attention's two products."""
    old = model.layers[op.layer]
    flops = 0.0
    for part, pair in (("attention", op.heads), ("mlp", op.channels)):
        if pair is not None:
            flops += _part_cost(model, op.layer, part).prefill_flops * (pair[1] - pair[0]) / pair[1]
    return Cost(
        params=op.params_removed,
        bytes=round(op.params_removed * old.bytes / old.params) if old.params else 0,
        prefill_flops=flops,
        kv_bytes_per_token=_kv_sliced(model, op),
    )


def _part_cost(model: ModelInfo, layer: int, part: str) -> Cost:
    cost = getattr(model.layers[layer], part)
    if cost is None:
        raise PlanError(
            f"layer {layer} of {model.name} has no {part} that can be told apart from the rest: remove whole layers"
        )
    return cost


def _new_cost(model: ModelInfo, op: ReplaceBlock, tensors: Mapping[str, Any]) -> Cost:
    """Of a feed-forward network or a linear map, in the model's own number format."""
    try:
        shapes = [tuple(tensors[name].shape) for name in tensor_names(op, tensors)]
    except ValueError as error:
        raise PlanError(str(error)) from error
    params = sum(math.prod(shape) for shape in shapes)
    weights = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    old = model.layers[op.start]
    itemsize = old.bytes / old.params if old.params else 0.0
    return Cost(
        params=params,
        bytes=round(params * itemsize),
        prefill_flops=2.0 * model.reference_tokens * weights,
        kv_bytes_per_token=0,
    )
