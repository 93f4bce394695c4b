"""What asking a model has cost so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunebench.plan import PlanCost

__all__ = ["Counts"]


@dataclass
class Counts:
    """Work done, whatever it was done for.

    Attributes:
        n_layers: decoder layers of the dense model.
        layer_forwards: decoder layers run, each counted once per sample that went through it; one part of a layer
            counts half.
        backward_passes: single samples through a backward pass of the whole decoder.
        token_layers: tokens without padding, counted once per layer that they went through.
    """

    n_layers: int
    layer_forwards: float = 0.0
    backward_passes: int = 0
    token_layers: float = 0.0

    def add(self, layers: float, samples: int, tokens: int) -> None:
        """`samples` with `tokens` tokens in all went through `layers` layers."""
        self.layer_forwards += layers * samples
        self.token_layers += layers * tokens

    @property
    def forward_passes(self) -> float:
        """Single samples through the whole dense decoder that are worth as many layers."""
        return self.layer_forwards / self.n_layers

    @property
    def tokens(self) -> int:
        """Tokens through the whole dense decoder that are worth as many layers, rounded up."""
        return math.ceil(self.token_layers / self.n_layers)

    def added_to(self, cost: PlanCost) -> PlanCost:
        """`cost` with this work in it."""
        return cost.model_copy(
            update={
                "forward_passes": cost.forward_passes + math.ceil(self.forward_passes),
                "backward_passes": cost.backward_passes + self.backward_passes,
                "calibration_tokens": cost.calibration_tokens + self.tokens,
            }
        )
