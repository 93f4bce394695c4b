"""Answers of a probe that are kept: a search at a larger budget asks again what a smaller one has asked."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Answer", "Remembered"]


@dataclass
class Answer:
    """What a question gave, and what it took.

    Attributes:
        values: (samples,) float64; of gradients, sums in an order of their own.
        layer_forwards, token_layers, backward_passes: as in `prunebench.probing.Counts`, with those for states that
            were not there yet.
        peak_memory: bytes, as in `prunebench.plan.PlanCost`; None where it is not known.
        seconds: wall time.
    """

    values: np.ndarray
    layer_forwards: float = 0.0
    token_layers: float = 0.0
    backward_passes: int = 0
    peak_memory: int | None = None
    seconds: float = 0.0


@dataclass
class Remembered:
    """Answers by question, for one model and one list of samples.

    A probe that asks what another has asked is charged, once, what it took the other. So a plan's cost is that of its
    search alone, whichever plans were made before it, up to the states in front of layers: a question whose states were
    there already took less, and a probe that goes on from remembered answers has none yet and runs at most one pass for
    them.
    """

    answers: dict[Hashable, Answer] = field(default_factory=dict)
    parts: dict[Hashable, Remembered] = field(default_factory=dict)
    scouts: list[Any] = field(default_factory=list)
    """Looks at all layers that thinners have taken beforehand (`prunebench.layerwise.together`)."""

    def part(self, key: Hashable) -> Remembered:
        """Of some of the samples."""
        return self.parts.setdefault(key, Remembered())
