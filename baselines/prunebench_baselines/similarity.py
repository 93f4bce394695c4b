"""What the similarity family shares: mean token cosines between hidden states, from the statistic ``token_cosine``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from prunebench.errors import CalibrationError
from prunebench.strategy import PlanContext, ScoreStrategy

if TYPE_CHECKING:
    from prunebench.calibration.trace import Trace

__all__ = ["BlockSimilarity", "Group", "angular_distance", "mid_ranks", "sample_cosine"]

Group = Literal["all", "visual", "audio", "text", "last"]


@dataclass(frozen=True)
class BlockSimilarity(ScoreStrategy):
    """Base of methods that compare hidden states h_a and h_b: what removing layers [a, b) would leave out.

    `similarity` is all that a method has to give: a layer's score is that of its own input and output, a block's that
    of the block's input and output.
    """

    group: Group = "all"
    average: Literal["tokens", "samples"] = "tokens"

    def requires(self) -> frozenset[str]:
        return frozenset({"token_cosine"})

    def similarity(self, context: PlanContext) -> np.ndarray:
        """How alike h_a and h_b are, (L+1, L+1); by default the mean cosine over the group's tokens."""
        return context.need_trace().mean_cosine(self.group, average=self.average)

    def score(self, context: PlanContext) -> np.ndarray:
        return np.diagonal(self.similarity(context), offset=1).copy()

    def windows(self, context: PlanContext) -> np.ndarray:
        similarity = self.similarity(context)
        return np.where(np.triu(np.ones_like(similarity, dtype=bool), 1), similarity, np.nan)


def sample_cosine(trace: Trace, group: str, samples: int | None = None) -> np.ndarray:
    """Mean token cosine between all hidden states in each sample that has tokens of `group`, (samples, L+1, L+1).

    `samples` looks at the first ones of the trace only, whether they have such tokens or not.

    Raises:
        CalibrationError: no sample has one.
    """
    index = trace.group(group)
    counts = trace["token_count"][:samples, index].astype(np.float64)
    if not (counts > 0).any():
        raise CalibrationError(f"no token of group {group!r} in the calibration samples")
    sums = trace["token_cosine"][:samples, index][counts > 0].astype(np.float64)
    return sums / counts[counts > 0, None, None]


def angular_distance(trace: Trace, group: str, samples: int | None = None) -> np.ndarray:
    """Mean over samples of (1/π) arccos of the sample's mean token cosine, (L+1, L+1), in [0, 1].

    For the group ``last`` (one token per sample) this is the angular distance exactly; for more tokens it is that of
    their mean cosine. `samples` looks at the first ones of the trace only.
    """
    cosines = sample_cosine(trace, group, samples)
    return np.arccos(np.clip(cosines, -1.0, 1.0)).mean(0) / np.pi


def mid_ranks(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of `among` lie below each of `values`, equal ones counted half: ranks without an order of ties."""
    return (among[None, :] < values[:, None]).sum(1) + 0.5 * (among[None, :] == values[:, None]).sum(1)
