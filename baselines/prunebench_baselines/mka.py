"""MKA: neighbouring layers that say the same are merged; as released, the last n are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.errors import BadParameter, BudgetError, CalibrationError
from prunebench.ops import Merge
from prunebench.plan import Plan, ScoreTable
from prunebench.strategy import PlanContext, Strategy

__all__ = ["MKA", "diffusion_map", "npib"]


@dataclass(frozen=True)
class MKA(Strategy):
    """Merges neighbouring layers whose states carry the same information: θ ← λ θ_l + (1 − λ) θ_m, λ = sigmoid(β s_lm).

    MKA (Liu et al., arXiv 2406.16330, github.com/SempraETY/Pruning-via-Merging). Each layer's states of all samples
    become points of a diffusion map (kernel exp(−(D / scale)^½), `dimensions` coordinates, each turned into ranks);
    s_lm = mean over coordinates of I(l; m) / sqrt(H(l) H(m)), the normalised information of two layers. Of all
    neighbours that are left, those with the highest s are merged, again and again; s is that of the dense model.

    The paper leaves much open. Our reading: one state per sample (the mean over its tokens, or its last one);
    coordinates in √n bins of equal counts; λ weighs the earlier layer; a merged group has the states of its last one.

    As released, the weights that are merged are those of a throw-away copy and the pair is always the last one left:
    ``variant=released_code`` drops the last n layers. It calibrates on test questions of MMLU; here on no benchmark.

    Args:
        points: what stands for a sample.
        dimensions: of the diffusion map.
        scale: of distances in its kernel.
        beta: β; 1 gives λ ≈ 0.62 for s = 0.5.
        variant: merge, or drop the last n.
    """

    name = "mka"
    paper = "https://arxiv.org/abs/2406.16330"

    points: Literal["mean", "last"] = "mean"
    dimensions: int = 2
    scale: float = 8.0
    beta: float = 1.0
    variant: Literal["paper", "released_code"] = "paper"

    def __post_init__(self) -> None:
        if self.dimensions < 1 or not self.scale > 0:
            raise BadParameter("mka: dimensions >= 1 and scale > 0 are needed")

    def requires(self) -> frozenset[str]:
        return frozenset() if self.variant == "released_code" else frozenset({f"points.{self.points}"})

    def plan(self, context: PlanContext) -> Plan:
        n_layers, stay = context.model.n_layers, set(context.model.protected)
        if self.variant == "released_code":
            allowed = [layer for layer in range(n_layers) if layer not in stay]
            if context.n_remove > len(allowed):
                raise BudgetError(f"mka: {context.n_remove} layers asked for, {len(allowed)} may go: lower the budget")
            last = allowed[len(allowed) - context.n_remove :]
            return self.build_plan(context, last, protected=stay, selection="the last n")
        similarity = self.similarity(context)
        groups: list[dict[int, float]] = [{layer: 1.0} for layer in range(n_layers)]
        for _ in range(context.n_remove):
            pairs = [i for i in range(len(groups) - 1) if not stay & {*groups[i], *groups[i + 1]}]
            if not pairs:
                raise BudgetError(f"mka: no neighbours are left to merge for {context.n_remove} layers: ask for fewer")
            best = max(pairs, key=lambda i: (similarity[max(groups[i]), max(groups[i + 1])], i))
            ratio = 1.0 / (1.0 + np.exp(-self.beta * similarity[max(groups[best]), max(groups[best + 1])]))
            mix = {layer: ratio * share for layer, share in groups[best].items()}
            mix |= {layer: (1.0 - ratio) * share for layer, share in groups[best + 1].items()}
            groups[best : best + 2] = [mix]
        merges = [group for group in groups if len(group) > 1]
        context.notes["merges"] = [{str(layer): share for layer, share in group.items()} for group in merges]
        ops = [
            Merge(into=min(group), sources=tuple(group), coefficients=tuple(map(float, group.values())))
            for group in merges
        ]
        neighbours = np.array([similarity[layer - 1, layer] if layer else 0.0 for layer in range(n_layers)])
        table = ScoreTable(
            values=tuple(neighbours.tolist()), meaning="normalised information shared with the layer before (NPIB)"
        )
        return self.build_plan(context, ops=ops, scores=table, protected=stay, selection="best neighbours, merged")

    def similarity(self, context: PlanContext) -> np.ndarray:
        """s_lm of the layers' outputs, (L, L)."""
        points = context.need_trace()[f"points.{self.points}"].astype(np.float64)  # (samples, L, d)
        if len(points) < 4 * self.dimensions:
            raise CalibrationError(
                f"mka: {len(points)} calibration samples are too few for {self.dimensions} dimensions: "
                f"at least {4 * self.dimensions} are needed"
            )
        bins = max(2, round(len(points) ** 0.5))
        coded = [
            _codes(diffusion_map(points[:, layer], self.dimensions, self.scale), bins)
            for layer in range(points.shape[1])
        ]
        return np.array([[npib(first, second, bins) for second in coded] for first in coded])


def diffusion_map(points: np.ndarray, dimensions: int, scale: float) -> np.ndarray:
    """Points (n, d) → (n, dimensions): leading eigenvectors, but for the constant one, of the kernel's random walk.

    The kernel is K = exp(−(D / scale)^½) for Euclidean distances D; the walk is K with rows that add up to 1.
    """
    squared = (points**2).sum(1)
    distances = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2.0 * points @ points.T, 0.0))
    kernel = np.exp(-np.sqrt(distances / scale))
    degree = np.sqrt(kernel.sum(1))
    values, vectors = np.linalg.eigh(kernel / np.outer(degree, degree))  # symmetric, with the walk's eigenvalues
    chosen = vectors[:, -2 : -2 - dimensions : -1] * values[-2 : -2 - dimensions : -1] / degree[:, None]
    signs = np.sign(chosen[np.abs(chosen).argmax(0), np.arange(dimensions)])
    return chosen * np.where(signs == 0, 1.0, signs)


def _codes(coordinates: np.ndarray, bins: int) -> np.ndarray:
    """Ranks of each coordinate in bins of equal counts, (dimensions, n)."""
    ranks = coordinates.argsort(0, kind="stable").argsort(0, kind="stable")
    return (ranks * bins // len(coordinates)).T


def npib(first: np.ndarray, second: np.ndarray, bins: int) -> float:
    """Mean over coordinates of I(x; y) / sqrt(H(x) H(y)), from codes (dimensions, n) in 0..bins−1; in [0, 1]."""
    shares = []
    for x, y in zip(first, second, strict=True):
        joint = np.zeros((bins, bins))
        np.add.at(joint, (x, y), 1.0 / len(x))
        of_x, of_y = joint.sum(1), joint.sum(0)
        information = _entropy(of_x) + _entropy(of_y) - _entropy(joint.ravel())
        shares.append(information / np.sqrt(_entropy(of_x) * _entropy(of_y)))
    return float(np.clip(np.mean(shares), 0.0, 1.0))


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
