"""INTERLACE: one layer out of three goes, its neighbour is tuned, and the third stays as an anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.errors import BadParameter, BudgetError
from prunebench.selection import Triplet, select_layers, triplets
from prunebench.strategy import Choice, PlanContext
from prunebench_baselines.similarity import BlockSimilarity

__all__ = ["Interlace"]


@dataclass(frozen=True)
class Interlace(BlockSimilarity):
    """Removes one layer of each of K triplets (i, i+1, i+2) with the highest mean of cos(h_i, h_{i+3}).

    INTERLACE (CVPR 2026; code: github.com/pmadinei/Interlace). Triplets do not overlap; of i and i+1 the one with the
    higher gap-1 cosine goes, the other is to be tuned, i+2 is frozen. Where triplets run out, gap-2 pairs (i, i+1). The
    last layer's output is never compared, so that layer never goes. Which layers to tune, and that all others are
    frozen, is in the plan's notes ``tune_layers`` and ``frozen_layers`` for the recovery stage.

    ``variant=released_code`` rounds down, K = int(ratio · L): 3, 5, 7, 9 of 36 at 10, 15, 20, 25 %; ``paper`` keeps to
    the budget's rounding as every other method here does.

    Args:
        group: token group; the original reads all tokens of the prompt.
        average: mean over the means of samples, as the original, or over all tokens.
        ablation: the released ablations: ``ordered`` drops i of every triplet and tunes i+1 (their OA); ``train_next``
            takes single layers by gap-1 cosine and tunes the next one (TN); ``consecutive`` drops the block that starts
            at the best single layer, which is not the best block, and tunes as many layers behind it.
        variant: the budget's rounding, or the released code's.
    """

    name = "interlace"
    paper = "https://github.com/pmadinei/Interlace"
    meaning = "mean token cosine of a layer's input and output, mean over samples"

    select: str = "triplet"
    average: Literal["tokens", "samples"] = "samples"
    ablation: Literal["none", "ordered", "train_next", "consecutive"] = "none"
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ablation != "none" and self.select != "triplet":
            raise BadParameter(f"ablation={self.ablation} is a rule of its own: leave select={self.select} out")

    def layers_to_remove(self, context: PlanContext) -> int:
        if self.variant == "paper" or context.budget.unit != "sparsity":
            return context.n_remove
        count = int(context.model.n_layers * context.budget.value)
        if count != context.n_remove:
            context.warnings.append(f"interlace: rounds down to {count} layers, {context.n_remove} were asked for")
        return count

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        return frozenset({context.model.n_layers - 1})

    def windows(self, context: PlanContext) -> np.ndarray:
        blocks = super().windows(context)
        blocks[:, -1] = np.nan  # the original never reads h_L
        return blocks

    def choose(self, context: PlanContext) -> Choice:
        if self.select != "triplet":
            return super().choose(context)
        protected, count = self.protected_layers(context), self.layers_to_remove(context)
        table = self.score_table(context)
        n_layers = len(table.values)
        select_layers(table.values, count, protected=sorted(protected))  # refuses more than may go, and no numbers
        allowed = [layer for layer in range(n_layers) if layer not in protected]
        found = self._groups(context, np.array(table.values), count, allowed)
        if len(found) < count:
            raise BudgetError(
                f"interlace: only {len(found)} groups of layers fit, {count} layers were asked for: "
                "ask for fewer, or use another rule (select=independent)"
            )
        drop = [group.drop for group in found]
        tune = sorted(group.keep for group in found if group.keep < n_layers)
        context.notes["tune_layers"] = tune
        context.notes["frozen_layers"] = sorted(set(range(n_layers)) - set(drop) - set(tune))
        return Choice(drop, table, protected)

    def _groups(self, context: PlanContext, values: np.ndarray, count: int, allowed: list[int]) -> list[Triplet]:
        """Which layer goes with which, best first."""
        if self.ablation in ("none", "ordered"):
            own = values if self.ablation == "none" else -np.arange(len(values), dtype=float)
            return triplets(own, count, allowed, self.windows(context))[0]
        best = sorted(allowed, key=lambda layer: (-values[layer], -layer))
        if self.ablation == "consecutive":
            block = range(best[0], best[0] + count) if best and count else range(0)
            if not set(block) <= set(allowed):
                raise BudgetError(f"interlace: no block of {count} free layers starts at the best layer {best[0]}")
            return [Triplet(layer, layer + count) for layer in block]
        found, taken = [], set()
        for layer in best:
            if len(found) < count and not taken & {layer, layer + 1}:
                found.append(Triplet(layer, layer + 1))
                taken |= {layer, layer + 1}
        return found
