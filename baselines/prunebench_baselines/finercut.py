"""FinerCut (re-implementation): attentions and MLPs, one at a time, by how little the model's output moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.strategy import PlanContext
from prunebench_baselines.loss_driven import asked_of
from prunebench_baselines.sublayers import GreedySublayers, Sublayer

__all__ = ["FinerCut"]


@dataclass(frozen=True)
class FinerCut(GreedySublayers):
    """Removes attentions and MLPs one by one, those that move the output least: score(p) = −d(f, f without R and p).

    A re-implementation from the description of FinerCut (Zhang et al., arXiv 2405.18218), which has no public code: p
    runs over both parts of every layer, R are those removed so far, f is the model's output and d a distance. What we
    chose where it is open: f are the logits at the places that foresee the answer's tokens, d is averaged over them and
    then over samples.

    Args:
        samples: calibration samples, the first ones with domains taking turns.
        metric: ``kl`` of the next token's distribution, ``cosine`` (1 − cosine of the logits), or ``norm`` of their
            difference by that of the dense logits.
    """

    name = "finercut"
    paper = "https://arxiv.org/abs/2405.18218"
    meaning = "change of the dense model's output without it (re-implementation)"

    metric: Literal["kl", "cosine", "norm"] = "kl"

    def damage(self, context: PlanContext, candidates: Sequence[Sublayer], removed: Sequence[Sublayer]) -> np.ndarray:
        probe = asked_of(context, self.name, self.samples)
        return probe.changes(candidates, removed, self.metric).mean(1)
