"""ReplaceMe: drop a block, and let the MLP before it say, by a linear map, what the block would have said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from prunebench.compensation import cosine_fold, least_squares_fold, removed_runs
from prunebench.errors import CalibrationError
from prunebench.ops import Fold
from prunebench.plan import Plan
from prunebench.strategy import PlanContext
from prunebench_baselines.similarity import BlockSimilarity, Group, angular_distance

__all__ = ["ReplaceMe"]


@dataclass(frozen=True)
class ReplaceMe(BlockSimilarity):
    """Removes the block [a, b) of least angular distance and folds a linear map T into the MLP before it: W ← Tᵀ W.

    ReplaceMe (Shopkhoev et al., arXiv 2505.02819). The block is UIDL's (see `angular`). With M the output of the MLP of
    layer a − 1 at the calibration tokens, T = (MᵀM + αI)⁻¹ Mᵀ (h_b − (h_a − M)) in float64, so that the residual stream
    before the block plus the new MLP output is nearest to what came out of the block. Where a selection rule removes
    several runs of layers, each gets a map of its own, all from the dense model's states. No layer stands before layer
    0: it is never removed, as in the released code, which drops h_0.

    What differs from the released code: the last block is compared before the final norm, activations are not of a
    4-bit model, and `tokens` tokens of every sample are fitted (half of them media, the last one always) instead of all
    of them, so that one calibration pass serves every block and every budget.

    Args:
        group: token group of the angular distance; the original reads the last token.
        average: unused: every sample weighs alike in the angular distance.
        tokens: calibration tokens per sample that the map is fitted to.
        alpha: ridge factor α.
        objective: least squares in closed form, or the paper's other variant, least mean 1 − cos by Adam.
        epochs, batch_size, learning_rate: of Adam, for ``objective=cosine``.
        compensate: False only drops the block (an ablation; UIDL on these blocks).
        module: the linear module that ends the MLP.
    """

    name = "replaceme"
    paper = "https://arxiv.org/abs/2505.02819"
    meaning = "1 − angular distance of a layer's input and output"

    select: str = "contiguous"
    group: Group = "last"
    average: Literal["samples"] = "samples"
    tokens: Annotated[int, Ge(1)] = 16
    alpha: Annotated[float, Ge(0)] = 0.0
    objective: Literal["lstsq", "cosine"] = "lstsq"
    epochs: Annotated[int, Ge(1)] = 10
    batch_size: Annotated[int, Ge(1)] = 1024
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    compensate: bool = True
    module: str = "mlp.down_proj"

    def requires(self) -> frozenset[str]:
        fitted = {f"token_states={self.tokens}", f"mlp_outputs={self.tokens}"} if self.compensate else set()
        return frozenset({"token_cosine", *fitted})

    def similarity(self, context: PlanContext) -> np.ndarray:
        return 1.0 - angular_distance(context.need_trace(), self.group)

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        return frozenset({0}) if self.compensate else frozenset()

    def plan(self, context: PlanContext) -> Plan:
        layers, table, protected = self.choose(context)
        ops, tensors = [], {}
        for start, stop in removed_runs(layers) if self.compensate else ():
            name = f"replaceme.{start}-{stop}"
            tensors[name] = self.fold(context, start, stop).astype(np.float32)
            ops.append(Fold(layer=start - 1, module=self.module, side="out", tensor=name))
        return self.build_plan(
            context, layers, ops=ops, tensors=tensors, scores=table, protected=protected, selection=self.select
        )

    def fold(self, context: PlanContext, start: int, stop: int) -> np.ndarray:
        """Tᵀ of the removed run [start, stop), (d, d); what it mends is noted for the plan's provenance."""
        trace = context.need_trace()
        added = trace.tokens(f"mlp_outputs={self.tokens}", start - 1).astype(np.float64)
        before, after = (
            trace.tokens(f"token_states={self.tokens}", boundary).astype(np.float64) for boundary in (start, stop)
        )
        count, width = added.shape
        if self.objective == "lstsq" and self.alpha == 0 and count <= width:
            context.warnings.append(
                f"replaceme: {count} calibration tokens cannot determine a map of {width} dimensions: "
                "raise -P tokens or --n-calibration, or give -P alpha"
            )
        try:
            if self.objective == "lstsq":
                found = least_squares_fold(added, before, after, self.alpha)
            else:
                steps = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
                found = cosine_fold(added, before, after, **steps, seed=context.seed)
        except ValueError as error:
            raise CalibrationError(f"replaceme: layers [{start}, {stop}): {error}") from error
        mended = before - added + added @ found.T
        context.notes.setdefault("mean_square_error", {})[f"{start}-{stop}"] = {
            "dropped": float(np.mean((before - after) ** 2)),
            "folded": float(np.mean((mended - after) ** 2)),
            "tokens": count,
        }
        return found
