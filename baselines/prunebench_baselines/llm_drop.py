"""LLM-Drop: whole layers, attention or MLP sub-layers whose output hardly differs from their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.errors import CalibrationError
from prunebench.ops import PARTS, DropSublayer
from prunebench.plan import Plan
from prunebench.strategy import PlanContext
from prunebench_baselines.similarity import BlockSimilarity

__all__ = ["LLMDrop"]


@dataclass(frozen=True)
class LLMDrop(BlockSimilarity):
    """Removes n layers, attentions or MLPs that turn the residual stream x least: score(l) = mean_t cos(x, x + f_l(x)).

    LLM-Drop (He et al., arXiv 2406.15786). ``part=attention`` and ``part=mlp`` remove that sub-layer of n layers, norm
    included: the budget then counts sub-layers of that part, and what it comes to in parameters stands in the plan. An
    attention that goes takes its key-value cache along.

    ``select=independent`` is the original's 'discrete' mode, ``contiguous`` its 'consecutive' one. There, to drop n
    layers, the released code compares h_a with h_{a+n+1}: ``variant=released_code`` does so too, and then never drops
    the last layer.

    Args:
        part: what goes.
        group: token group; the original reads all.
        average: mean over all tokens, or over the means of samples.
        variant: the paper's gap of a block of whole layers, or the released code's.
    """

    name = "llm_drop"
    paper = "https://arxiv.org/abs/2406.15786"
    meaning = "mean token cosine of a part's input and output, the residual stream included"

    part: Literal["block", "attention", "mlp"] = "block"
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part != "block":  # not ranked among those that remove as many whole layers
            object.__setattr__(self, "kind", "sublayers")

    def requires(self) -> frozenset[str]:
        return super().requires() if self.part == "block" else frozenset({"sublayer_cosine"})

    def score(self, context: PlanContext) -> np.ndarray:
        if self.part == "block":
            return super().score(context)
        trace = context.need_trace()
        sums = trace["sublayer_cosine"][:, trace.group(self.group), :, PARTS.index(self.part)].astype(np.float64)
        counts = trace["token_count"][:, trace.group(self.group)].astype(np.float64)
        if not (filled := counts > 0).any():
            raise CalibrationError(f"no token of group {self.group!r} in the calibration samples")
        if self.average == "tokens":
            return sums[filled].sum(0) / counts[filled].sum()
        return (sums[filled] / counts[filled, None]).mean(0)

    def windows(self, context: PlanContext) -> np.ndarray | None:
        if self.part != "block":
            return None
        blocks = super().windows(context)
        if self.variant == "released_code" and self.select == "contiguous":
            blocks = np.column_stack([blocks[:, 1:], np.full(len(blocks), np.nan)])  # [a, b) by the column of b + 1
        return blocks

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        wrong_gap = self.variant == "released_code" and self.select == "contiguous" and self.part == "block"
        return frozenset({context.model.n_layers - 1}) if wrong_gap else frozenset()

    def plan(self, context: PlanContext) -> Plan:
        if self.part == "block":
            return super().plan(context)
        layers, table, protected = self.choose(context)
        ops = [DropSublayer(layer=layer, part=self.part) for layer in sorted(layers)]
        return self.build_plan(context, (), ops=ops, scores=table, protected=protected, selection=self.select)
