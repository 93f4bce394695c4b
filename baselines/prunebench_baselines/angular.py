"""Angular distance over a block of layers: the criterion of "The Unreasonable Ineffectiveness of the Deeper Layers"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from prunebench.errors import CalibrationError
from prunebench.strategy import PlanContext
from prunebench_baselines.similarity import BlockSimilarity, Group, angular_distance

__all__ = ["Angular"]


@dataclass(frozen=True)
class Angular(BlockSimilarity):
    """Removes the block of n layers that turns the hidden state least: d_n(l) = (1/π) arccos cos(h_l, h_{l+n}).

    UIDL (Gromov et al., arXiv 2403.17887): the mean of d_n over samples, of the last token; the block with the least
    d_n goes. The score of a block is 1 − d_n, of a layer 1 − d_1. In a vision-language model the last prompt token is
    often one of the chat template and hardly sees the image: ``group=all`` (or visual, text) is the other choice,
    where d_n is that of a sample's mean cosine.

    ``variant=released_code`` (PruneMe, github.com/arcee-ai/PruneMe) leaves h_0 out, so that no block starts at layer 0,
    and loses the last incomplete batch of samples. That it reads its last candidate after the final norm cannot be
    reproduced from raw states (the last block is compared before the norm here), nor its 4-bit weights.

    Args:
        group: token group; the original reads ``last``.
        average: unused: every sample weighs alike.
        variant: the paper's formula, or what the released code computes.
        batch_size: samples per batch of the released code; only whole batches count in ``variant=released_code``.
    """

    name = "angular"
    aliases = ("uidl", "pruneme")
    paper = "https://arxiv.org/abs/2403.17887"
    meaning = "1 − angular distance of a layer's input and output"

    select: str = "contiguous"
    group: Group = "last"
    average: Literal["samples"] = "samples"
    variant: Literal["paper", "released_code"] = "paper"
    batch_size: Annotated[int, Ge(1)] = 8

    def similarity(self, context: PlanContext) -> np.ndarray:
        trace, samples = context.need_trace(), None
        if self.variant == "released_code":
            samples = trace.meta.n_samples // self.batch_size * self.batch_size
            if not samples:
                raise CalibrationError(
                    f"angular: variant=released_code drops incomplete batches: {trace.meta.n_samples} samples are "
                    f"less than one batch of {self.batch_size}; give more, or lower -P batch_size"
                )
        return 1.0 - angular_distance(trace, self.group, samples)

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        return frozenset({0}) if self.variant == "released_code" else frozenset()
