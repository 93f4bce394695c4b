"""Shortened LLaMA's perplexity criterion: what the loss becomes without a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunebench.strategy import PlanContext
from prunebench_baselines.loss_driven import LossDriven

__all__ = ["ShortenedPPL"]


@dataclass(frozen=True)
class ShortenedPPL(LossDriven):
    """Removes the layers without which perplexity stays lowest, one shot: score(l) = −log PPL(model without l).

    Shortened LLaMA (Kim et al., arXiv 2402.02834): PPL = exp(mean NLL of the tokens) on 10 samples, here of the
    answers' tokens given prompt and media. Each layer is tried alone, from the state in front of it: about L/2 passes.

    ``variant=released_code`` (github.com/Nota-NetsPresso/shortened-llm) never removes the first four layers and the
    last two: its pruning script protects them for every criterion unless a flag says otherwise, and none of the shipped
    commands does. The paper gives that heuristic to the Taylor criterion alone.

    Args:
        samples: calibration samples, the first ones with domains taking turns.
        average: mean over all tokens, or over the means of samples.
        variant: the paper's candidates, or the released script's.
    """

    name = "shortened_ppl"
    paper = "https://arxiv.org/abs/2402.02834"

    samples: int = 10
    variant: Literal["paper", "released_code"] = "paper"

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        if self.variant == "paper":
            return frozenset()
        n_layers = context.model.n_layers
        return frozenset({*range(min(4, n_layers)), *range(max(0, n_layers - 2), n_layers)})
