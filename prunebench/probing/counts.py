"""What asking a model has cost so far."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunebench.plan import PlanCost
    from prunebench.probing.remembered import Answer

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
        peak_memory: bytes that the work held at most, as in `prunebench.plan.PlanCost`; None where it is not known.
        recalled_seconds: wall time of the answers that were remembered, when they were computed.
    """

    n_layers: int
    layer_forwards: float = 0.0
    backward_passes: int = 0
    token_layers: float = 0.0
    peak_memory: int | None = None
    recalled_seconds: float = 0.0

    def add(self, layers: float, samples: int, tokens: int) -> None:
        """`samples` with `tokens` tokens in all went through `layers` layers."""
        self.layer_forwards += layers * samples
        self.token_layers += layers * tokens

    def held(self, size: int | None) -> None:
        """As many bytes were held at one time."""
        known = [each for each in (self.peak_memory, size) if each is not None]
        self.peak_memory = max(known, default=None)

    @contextmanager
    def taken_by(self, answer: Answer) -> Iterator[None]:
        """Add to an answer what is counted inside, and the time."""
        before = self.layer_forwards, self.token_layers, self.backward_passes, time.perf_counter()
        peak, self.peak_memory = self.peak_memory, None
        yield
        answer.peak_memory = self.peak_memory
        self.held(peak)
        answer.layer_forwards += self.layer_forwards - before[0]
        answer.token_layers += self.token_layers - before[1]
        answer.backward_passes += self.backward_passes - before[2]
        answer.seconds += time.perf_counter() - before[3]

    def recall(self, answer: Answer) -> None:
        """Count what an answer took when it was computed."""
        self.layer_forwards += answer.layer_forwards
        self.token_layers += answer.token_layers
        self.backward_passes += answer.backward_passes
        self.held(answer.peak_memory)
        self.recalled_seconds += answer.seconds

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
        peaks = [each for each in (cost.peak_memory, self.peak_memory) if each is not None]
        return cost.model_copy(
            update={
                "forward_passes": cost.forward_passes + math.ceil(self.forward_passes),
                "backward_passes": cost.backward_passes + self.backward_passes,
                "calibration_tokens": cost.calibration_tokens + self.tokens,
                "peak_memory": max(peaks, default=None),
            }
        )
