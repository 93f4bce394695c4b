"""LLM-Streamline: one block of neighbouring layers goes, and one light module may take its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.errors import BadParameter
from prunebench.plan import Plan
from prunebench.strategy import PlanContext
from prunebench_baselines.similarity import BlockSimilarity

__all__ = ["LLMStreamline"]


@dataclass(frozen=True)
class LLMStreamline(BlockSimilarity):
    """Removes the block that turns the hidden state least: S_n(j) = mean over tokens of (1 + cos(h_j, h_{j+n}))/2.

    LLM-Streamline (Chen et al., arXiv 2403.19135). ``replacement=none`` is the paper's variant without a module: n
    layers with gap n. With a replacement, n + 1 layers become one, so n go: the block is chosen with gap n + 1, its
    first slot is kept for the module, and the plan's note ``replace_block`` = [start, stop, kind] tells the recovery
    stage what to train; as it stands, the slot keeps its own layer.

    ``variant=released_code`` chooses with gap n + 1 and keeps the slot whatever the replacement is. That it reads h_L
    after the final norm cannot be reproduced from raw states.

    Args:
        group: token group; the original reads all.
        average: mean over the means of samples, as the original, or over all tokens.
        replacement: what is to stand in the slot: nothing, a decoder layer, or a feed-forward network.
        variant: the paper's choice of block, or the released code's.
    """

    name = "llm_streamline"
    aliases = ("streamline",)
    paper = "https://arxiv.org/abs/2403.19135"
    meaning = "(1 + cosine of a layer's input and output) / 2, mean over samples"

    select: str = "contiguous"
    average: Literal["tokens", "samples"] = "samples"
    replacement: Literal["none", "layer", "ffn"] = "none"
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replacement != "none" and self.select != "contiguous":
            raise BadParameter(f"a replacement stands for one block: it needs select=contiguous, not {self.select}")

    @property
    def keeps_slot(self) -> bool:
        """Whether the block's first slot stays, for a module or as it is."""
        return self.select == "contiguous" and (self.replacement != "none" or self.variant == "released_code")

    def similarity(self, context: PlanContext) -> np.ndarray:
        return 0.5 + 0.5 * super().similarity(context)

    def windows(self, context: PlanContext) -> np.ndarray:
        blocks = super().windows(context)
        if not self.keeps_slot:
            return blocks
        shifted = np.full_like(blocks, np.nan)
        shifted[1:] = blocks[:-1]  # removing [a, b) is worth what the block [a − 1, b) with its slot is
        shifted[np.tril_indices(len(shifted))] = np.nan
        for layer in self.must_stay(context):
            if layer + 1 < len(shifted):
                shifted[layer + 1] = np.nan  # a layer that must stay is no slot for another module
        return shifted

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        return frozenset({0}) if self.keeps_slot else frozenset()  # before layer 0 there is no slot

    def plan(self, context: PlanContext) -> Plan:
        layers, table, protected = self.choose(context)
        if self.replacement != "none" and layers:
            context.notes["replace_block"] = [min(layers) - 1, max(layers) + 1, self.replacement]
        return self.build_plan(context, layers, scores=table, protected=protected, selection=self.select)
