"""Shortened LLaMA, magnitude: the size of a layer's weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunebench.strategy import PlanContext, ScoreStrategy

__all__ = ["ShortenedMagnitude"]


@dataclass(frozen=True)
class ShortenedMagnitude(ScoreStrategy):
    """Removes the layers with the smallest weights: score(l) = −Σ_{w in layer l} |w|.

    The baseline of Shortened LLaMA (Kim et al., arXiv 2402.02834), norms included. It looks at no sample; where layers
    are not alike, those with fewer weights go first. `magnitude` is the method of that name for single weights.
    """

    name = "shortened_magnitude"
    paper = "https://arxiv.org/abs/2402.02834"
    needs_model = True
    weights_only = True
    meaning = "minus the sum of the absolute weights of the layer"

    def score(self, context: PlanContext) -> np.ndarray:
        return -context.need_probe().weights()["layer"]
