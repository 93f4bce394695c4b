"""Leave-one-out on samples that no other loss-driven method looks at: what single layers are really worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunebench.strategy import PlanContext
from prunebench_baselines.loss_driven import LossDriven

__all__ = ["LeaveOneOut"]


@dataclass(frozen=True)
class LeaveOneOut(LossDriven):
    """Removes the layers whose absence alone costs least on held-out samples: score(l) = −NLL(model without l).

    No method of the literature but a yardstick for them: it knows the true cost of every single layer, and not what
    layers cost together (``select=greedy`` asks anew after each removal). It takes the last of the calibration samples,
    the other methods of this family the first ones; where the last ones are more than half of all, a warning says so.
    Methods that read the statistics of the calibration pass see all samples.

    Args:
        samples: calibration samples, the last ones with domains taking turns.
        average: mean over all tokens, or over the means of samples.
    """

    name = "oracle_loo"
    held_out = True
    meaning = "minus the mean loss of held-out answers without the layer"

    def loss_without(self, context: PlanContext, layers: Sequence[int], removed: Sequence[int]) -> np.ndarray:
        total = context.need_probe().n_samples
        line = f"{self.name}: more than half of the {total} calibration samples are held out: others see them too"
        if 2 * self.samples > total and line not in context.warnings:
            context.warnings.append(line)
        return super().loss_without(context, layers, removed)
