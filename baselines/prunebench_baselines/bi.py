"""ShortGPT's Block Influence: the cosine of a layer's input and output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.errors import CalibrationError
from prunebench.strategy import PlanContext
from prunebench_baselines.similarity import BlockSimilarity, angular_distance

__all__ = ["BlockInfluence"]


@dataclass(frozen=True)
class BlockInfluence(BlockSimilarity):
    """Removes the layers that turn the hidden state least: score(l) = mean over tokens of cos(h_l, h_{l+1}) = 1 − BI_l.

    ShortGPT (Men et al., arXiv 2403.03853). h_l is the raw residual stream before layer l, taken from hooks, so the
    last layer is compared before the final norm. The measure is blind to length: a layer that doubles h scores 1.

    ``variant=released_code`` (github.com/sramshetty/ShortGPT) adds cosines up instead of averaging them, so that long
    samples weigh more, and counts the cosine of a zero vector (NaN) as 0.5; in it `average` says nothing. Its padding,
    which it adds up too, and its normed last state are not reproduced: padding says nothing about a layer.

    ``mode=angular`` scores the block that would go, (1/π) arccos cos(h_l, h_{l+n}) of the last token, and belongs with
    ``select=contiguous``. The released code fails there for n = 1 (its slice of candidates is empty); this does not.

    Args:
        group: token group (all, visual, audio, text, last); ``mode=angular`` reads the last token whatever it says.
        average: mean over all tokens, or over the means of samples.
        mode: ``influence`` of single layers, or ``angular`` distance over the block.
        variant: the paper's formula, or what the released code computes.
    """

    name = "bi"
    aliases = ("cosine", "block_influence")
    control = True
    paper = "https://arxiv.org/abs/2403.03853"
    meaning = "cosine of a layer's input and output over the tokens"

    mode: Literal["influence", "angular"] = "influence"
    variant: Literal["paper", "released_code"] = "paper"

    def similarity(self, context: PlanContext) -> np.ndarray:
        if self.mode == "angular":
            return 1.0 - angular_distance(context.need_trace(), "last")
        if self.variant == "released_code":
            return self._summed(context)
        return super().similarity(context)

    def score(self, context: PlanContext) -> np.ndarray:
        if self.mode == "angular" and self.select == "independent":
            context.warnings.append("bi: mode=angular measures blocks; the original selects with select=contiguous")
        return super().score(context)

    def _summed(self, context: PlanContext) -> np.ndarray:
        """Sum over tokens of the cosine, with 0.5 where a state is zero; the released importance is tokens − this."""
        trace = context.need_trace()
        sums = trace["token_cosine"][:, trace.group(self.group)].astype(np.float64)
        tokens = trace["token_count"][:, trace.group(self.group)].astype(np.float64)
        if not tokens.any():
            raise CalibrationError(f"no token of group {self.group!r} in the calibration samples")
        # A zero state has cosine 0 with all others and with itself, so a sample's diagonal counts those that are not.
        # Of two boundaries, the tokens that are zero at one are taken to be among those that are zero at the other.
        zeros = tokens[:, None] - np.round(np.diagonal(sums, axis1=1, axis2=2))
        return (sums + 0.5 * np.maximum(zeros[:, :, None], zeros[:, None, :])).sum(0)
