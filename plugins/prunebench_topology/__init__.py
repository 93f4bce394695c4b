"""Topological layer scores: zigzag persistence of nearest-neighbour graphs across the layers of a model.

Usable without PruneBench: ``flag_zigzag_barcodes`` gives exact zigzag barcodes of any sequence of graphs, and
``topology_scores`` goes from hidden states to layer scores.  Names are loaded when first used, so that importing this
package imports neither numba nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

HOMES = {
    "flag_zigzag_barcodes": "zigzag",
    "barcodes": "engines",
    "ENGINES": "engines",
    "knn_graph": "neighbors",
    "METRICS": "neighbors",
    "effective_intervals": "image",
    "effective_persistence_image": "image",
    "activity": "image",
    "WEIGHTS": "image",
    "pairwise_consistency": "consistency",
    "consistency_from_epi": "consistency",
    "mean_consistency": "consistency",
    "betti_curve": "consistency",
    "epsilon_interval": "consistency",
    "MODES": "consistency",
    "TopologyResult": "scoring",
    "topology_scores": "scoring",
    "draw": "figures",
}

__all__ = [
    "ENGINES",
    "METRICS",
    "MODES",
    "WEIGHTS",
    "TopologyResult",
    "activity",
    "barcodes",
    "betti_curve",
    "consistency_from_epi",
    "draw",
    "effective_intervals",
    "effective_persistence_image",
    "epsilon_interval",
    "flag_zigzag_barcodes",
    "knn_graph",
    "mean_consistency",
    "pairwise_consistency",
    "topology_scores",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
