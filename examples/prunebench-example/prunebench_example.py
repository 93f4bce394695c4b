from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench import ScoreStrategy, hookimpl


@dataclass(frozen=True)
class FacilityLocation(ScoreStrategy):
    """Keeps the layers whose outputs h best stand for the outputs of all layers; what is picked last goes first.

    Greedy: S grows by the layer that raises F(S) = Σ_i max_{j∈S} (1 + cos(h_i, h_j)) / 2 most. F is monotone and
    submodular: F(S) ≥ (1 − 1/e) of the best (Nemhauser, Wolsey, Fisher 1978, doi:10.1007/BF01588971).
    """

    name = "facility_location"
    meaning = "place in the greedy order of layers that stand for all"
    group: Literal["all", "visual", "audio", "text", "last"] = "all"

    def requires(self):
        return frozenset({"token_cosine"})

    def score(self, context):
        likeness = (1 + context.need_trace().mean_cosine(self.group)[1:, 1:]) / 2  # (L, L), of layer outputs
        order = []
        for _ in likeness:
            value = np.maximum(likeness, likeness[order].max(0, initial=0)).sum(1)  # F with each layer added
            value[order] = -np.inf
            order.append(int(value.argmax()))
        return np.argsort(order)


@hookimpl
def prunebench_register_strategies(register):
    register(FacilityLocation)
