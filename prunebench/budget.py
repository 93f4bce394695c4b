"""How much to remove: what was asked, and what that came to in every unit.

"50 % sparsity" means half of the decoder layers here; 50 % of the layers is 41.8 % of LLaVA-NeXT-8B's parameters and
29.7 % of Qwen2-VL-2B's. So a budget is asked in one unit and reported in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prunebench.errors import BudgetError
from prunebench.model_info import ModelInfo

__all__ = ["ROUNDING", "Achieved", "Budget", "BudgetReport", "achieved"]

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


def achieved(model: ModelInfo, removed: Iterable[int]) -> Achieved:
    """What removing whole decoder layers `removed` (original ids) takes away, in every unit."""
    gone = [model.layers[layer] for layer in sorted(set(removed))]
    params = sum(cost.params for cost in gone)

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    return Achieved(
        layers_removed=len(gone),
        layers=share(len(gone), model.n_layers),
        lm_params=share(params, model.lm_params),
        model_params=share(params, model.model_params),
        params_removed=params,
        bytes=share(sum(cost.bytes for cost in gone), model.model_bytes),
        prefill_flops=share(sum(cost.prefill_flops for cost in gone), model.lm_prefill_flops),
        kv_bytes_per_token=share(sum(cost.kv_bytes_per_token for cost in gone), model.kv_bytes_per_token),
    )
