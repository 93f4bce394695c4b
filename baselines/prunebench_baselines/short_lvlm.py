"""Short-LVLM: cosines over the tokens that matter, and a subspace fold for what is removed. From figures only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from prunebench.compensation import removed_runs, subspace_fold
from prunebench.errors import CalibrationError
from prunebench.ops import Fold
from prunebench.plan import Plan
from prunebench.strategy import PlanContext, ScoreStrategy

__all__ = ["ShortLVLM"]


@dataclass(frozen=True)
class ShortLVLM(ScoreStrategy):
    """Short-LVLM (re-implementation from figures): cosine over the most important tokens, subspace compensation.

    No code of the method is public (github.com/ASGO-MM/Short-LVLM holds none), and what follows was read off two
    figures; everything that they do not show is a parameter here, and its default is our reading.

    Token importance, from the head-averaged attention A of every layer, mean over the layers: a media token counts by
    how much media and text look at it, a text token by how much it looks at the media and text looks at it (see
    `prunebench.calibration.attention.Importance`). score(l) = mean of cos(h_l, h_{l+1}) over the share `p` of the media
    and of the text tokens with the highest importance; the highest scores go.

    Subspace compensation: for every run of removed layers [a, b), H = X_b − X_a from pooled features of the samples
    after the last pruned and after the last retained layer, H = U S Vᵀ, and W ← (I + V_k V_kᵀ) W in layer a − 1. A run
    that starts at layer 0 has no layer before it and stays as it is; the plan says so.

    Args:
        p: share of the tokens that counts.
        tokens: which of them: both kinds, media, or text.
        average: mean over all tokens, or over the means of samples.
        compensate: False leaves the compensation out (an ablation).
        k: dimensions of the subspace.
        pool: features of a sample: mean over its tokens, or its last token.
        module: the linear module W.
    """

    name = "short_lvlm"
    paper = "https://github.com/ASGO-MM/Short-LVLM"
    meaning = (
        "mean cosine of a layer's input and output over the most important tokens (re-implementation from figures)"
    )

    p: Annotated[float, Gt(0), Le(1)] = 0.5
    tokens: Literal["both", "media", "text"] = "both"
    average: Literal["tokens", "samples"] = "tokens"
    compensate: bool = True
    k: Annotated[int, Ge(1)] = 8
    pool: Literal["mean", "last"] = "mean"
    module: str = "mlp.down_proj"

    def requires(self) -> frozenset[str]:
        features = {f"points.{self.pool}"} if self.compensate else set()
        return frozenset({f"important_cosine={self.p!r}", *features})

    def score(self, context: PlanContext) -> np.ndarray:
        trace, name = context.need_trace(), f"important_cosine={self.p!r}"
        kind = ("both", "media", "text").index(self.tokens)
        sums, counts = trace[name][:, kind].astype(np.float64), trace[f"{name}.count"][:, kind].astype(np.float64)
        if not (filled := counts > 0).any():
            raise CalibrationError(
                f"short_lvlm: no {self.tokens} token in the calibration samples: choose -P tokens=both"
            )
        if self.average == "tokens":
            return sums[filled].sum(0) / counts[filled].sum()
        return (sums[filled] / counts[filled, None]).mean(0)

    def plan(self, context: PlanContext) -> Plan:
        layers, table, protected = self.choose(context)
        context.notes["source"] = "re-implementation from figures: no code of this method is public"
        ops, tensors = [], {}
        for start, stop in removed_runs(layers) if self.compensate else ():
            if start == 0:
                context.warnings.append(
                    f"short_lvlm: layers [0, {stop}) have no layer before them and stay uncompensated"
                )
                continue
            features = context.need_trace()[f"points.{self.pool}"]  # [:, l] is after layer l
            name = f"short_lvlm.{start}-{stop}"
            try:
                tensors[name] = subspace_fold(features[:, stop - 1], features[:, start - 1], self.k).astype(np.float32)
            except ValueError as error:
                raise CalibrationError(
                    f"short_lvlm: layers [{start}, {stop}): {error}; raise --n-calibration, lower -P k, or give "
                    "-P compensate=false"
                ) from error
            ops.append(Fold(layer=start - 1, module=self.module, side="out", tensor=name))
        return self.build_plan(
            context, layers, ops=ops, tensors=tensors, scores=table, protected=protected, selection=self.select
        )
