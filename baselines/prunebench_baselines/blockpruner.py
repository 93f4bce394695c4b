"""BlockPruner: attentions and MLPs, one at a time, by the perplexity without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.strategy import PlanContext
from prunebench_baselines.loss_driven import asked_of
from prunebench_baselines.sublayers import GreedySublayers, Sublayer

__all__ = ["BlockPruner"]


@dataclass(frozen=True)
class BlockPruner(GreedySublayers):
    """Removes attentions and MLPs one by one, those without which perplexity is lowest: score(p) = −NLL(model − R − p).

    BlockPruner (Zhong et al., arXiv 2406.10594, github.com/MrGGLS/BlockPruner). p runs over both parts of every layer,
    R are those removed so far; nothing is protected. The original scores 256 samples of Alpaca in the paper and 64 in
    its README, joined into windows of 2048 tokens of which each counts alike; here the loss is that of the answers'
    tokens given prompt and media.

    Args:
        samples: calibration samples, the first ones with domains taking turns.
        average: mean over the samples' means (the original's, by windows), or over all tokens.
    """

    name = "blockpruner"
    paper = "https://arxiv.org/abs/2406.10594"
    meaning = "mean negative log-likelihood of the answers without it"

    average: Literal["samples", "tokens"] = "samples"

    def damage(self, context: PlanContext, candidates: Sequence[Sublayer], removed: Sequence[Sublayer]) -> np.ndarray:
        probe = asked_of(context, self.name, self.samples)
        return probe.mean(probe.losses(candidates, removed), self.average)
