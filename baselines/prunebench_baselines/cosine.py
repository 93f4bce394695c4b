"""Cosine of a layer's input and output: the criterion behind ShortGPT's Block Influence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.strategy import PlanContext, ScoreStrategy

__all__ = ["Cosine"]


@dataclass(frozen=True)
class Cosine(ScoreStrategy):
    """Removes the layers that turn the hidden state least: score(l) = mean over tokens of cos(h_l, h_{l+1}).

    ShortGPT (Men et al., arXiv 2403.03853) calls 1 − score the Block Influence. h_l is the raw residual stream before
    layer l, taken from hooks, so the last layer is compared before the final norm.

    Args:
        group: token group (all, visual, audio, text, last).
        average: mean over all tokens, or over the means of samples.
    """

    name = "cosine"
    control = True
    paper = "https://arxiv.org/abs/2403.03853"
    meaning = "mean token cosine of a layer's input and output"

    group: Literal["all", "visual", "audio", "text", "last"] = "all"
    average: Literal["tokens", "samples"] = "tokens"

    def requires(self) -> frozenset[str]:
        return frozenset({"token_cosine"})

    def score(self, context: PlanContext) -> np.ndarray:
        cosines = context.need_trace().mean_cosine(self.group, average=self.average)
        return np.diagonal(cosines, offset=1).copy()
