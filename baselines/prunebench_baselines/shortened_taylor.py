"""Shortened LLaMA's Taylor criterion: what a layer's weights do to the loss, to first order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunebench.plan import Plan
from prunebench.strategy import PlanContext, ScoreStrategy
from prunebench_baselines.loss_driven import asked_of, check_samples, note_work

__all__ = ["ShortenedTaylor"]


@dataclass(frozen=True)
class ShortenedTaylor(ScoreStrategy):
    """Removes the layers whose weights matter least to first order: score(l) = −Σ_{w in layer l} |w · Σ_batches ∂L/∂w|.

    Shortened LLaMA (Kim et al., arXiv 2402.02834), criterion Taylor+: norms count, embeddings do not, gradients are
    added up over samples before the absolute value, and the first four layers and the last two always stay (both the
    paper and its code; ``protect_first=0`` and ``protect_last=0`` give plain Taylor). L is the mean over samples of the
    mean loss of an answer's tokens given prompt and media. One forward and one backward pass over 10 samples.

    Args:
        samples: calibration samples, the first ones with domains taking turns.
        protect_first: how many of the first layers must stay.
        protect_last: how many of the last layers must stay.
    """

    name = "shortened_taylor"
    aliases = ("taylor",)
    paper = "https://arxiv.org/abs/2402.02834"
    needs_model = True
    meaning = "minus the sum over the layer's weights of |weight × gradient of the loss|"

    samples: int = 10
    protect_first: int = 4
    protect_last: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.name, self.samples)

    def score(self, context: PlanContext) -> np.ndarray:
        probe = asked_of(context, self.name, self.samples)
        if context.model.dtype == "bfloat16":
            context.warnings.append(f"{self.name}: gradients in bfloat16 have 3 digits; --dtype float32 is safer")
        return -probe.gradients()["layer"]

    def plan(self, context: PlanContext) -> Plan:
        layers, table, protected = self.choose(context)
        note_work(context, self.samples)
        return self.build_plan(context, layers, scores=table, protected=protected, selection=self.select)
