"""OWL: layers with more outliers keep more of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from prunebench.errors import BadParameter
from prunebench.layerwise import UNSTRUCTURED, LayerView, LayerwiseStrategy, Thinned, Thinner
from prunebench.layerwise.contract import Average, Need
from prunebench.strategy import PlanContext
from prunebench_baselines.allocation import clip_densities, spread_densities
from prunebench_baselines.magnitude import MagnitudeThinner
from prunebench_baselines.sparsegpt import SparseGPTThinner
from prunebench_baselines.wanda import WandaThinner, wanda_scores

__all__ = ["OWL", "Outliers"]


@dataclass(frozen=True)
class OWL(LayerwiseStrategy):
    """Zeroes fewer weights of layers with more outliers: density_l = 1 − s + 2λ (D_l − min D) / (max D − min D) − mean.

    OWL (Yin et al., arXiv 2310.05175, github.com/luuyin/OWL). D_l is the share of the Wanda scores of all linear
    modules of layer l together, in the dense model, that are above M times their mean. The densities have a range of 2λ
    and the mean 1 − s over weights (the released code's is over layers: the same where layers are of one size). Within
    a layer all modules have one density, and `prune` says which weights go; Wanda rounds down row by row, so that with
    short rows a little more stays than the densities say.

    A density outside [0, 1] is clipped and the rest shifted until the total is met, with a warning. Layers with equal
    shares of outliers have equal densities.

    Args:
        outlier_factor: M: how many times the mean makes an outlier.
        spread: λ: half the range of the densities.
        prune: how the weights of a layer are chosen: by the method of that name, with its other parameters as they are.
        sequential: of that method's statistics (see `wanda`).
        average: of the squared inputs (see `wanda`).
    """

    name = "owl"
    paper = "https://arxiv.org/abs/2310.05175"

    outlier_factor: Annotated[float, Gt(0)] = 5.0
    spread: Annotated[float, Ge(0)] = 0.08
    prune: Literal["wanda", "sparsegpt", "magnitude"] = "wanda"
    sequential: bool = True
    average: Literal["tokens", "samples"] = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != UNSTRUCTURED:
            raise BadParameter(
                f"{self.name}: layers of different densities have no one pattern {self.pattern}: drop -P pattern, or "
                f"use {self.prune} with it"
            )
        if not self.outlier_factor > 0 or self.spread < 0:
            raise BadParameter(f"{self.name}: outlier_factor must be above 0 and spread not negative")

    def scout(self, context: PlanContext) -> Thinner | None:
        return Outliers(self.outlier_factor, self.average)

    def thinner(self, context: PlanContext, scout: Thinner | None) -> Thinner:
        assert isinstance(scout, Outliers)
        layers = sorted(scout.ratios)
        ratios, sizes = [scout.ratios[layer] for layer in layers], [scout.sizes[layer] for layer in layers]
        asked = spread_densities(ratios, sizes, context.share, self.spread)
        densities = clip_densities(asked, sizes, context.share)

        def warn(line: str) -> None:
            context.warnings.append(f"{self.name}: {line}")

        if outside := int(((asked < 0) | (asked > 1)).sum()) if context.share else 0:
            warn(
                f"densities outside [0, 1] were clipped in {outside} of {len(layers)} layers, and the others shifted "
                "to make up for it: a smaller -P spread fits this sparsity"
            )
        context.notes["outlier_ratios"] = {str(x): float(f"{r:.6g}") for x, r in zip(layers, ratios, strict=True)}
        context.notes["layer_densities"] = {str(x): float(f"{d:.6g}") for x, d in zip(layers, densities, strict=True)}
        shares = dict(zip(layers, (1.0 - densities).tolist(), strict=True))

        if self.prune == "magnitude":
            return MagnitudeThinner(shares)
        if self.prune == "sparsegpt":
            return SparseGPTThinner(shares, self.sequential, warn=warn)
        return WandaThinner(shares, self.sequential, self.average)


@dataclass
class Outliers(Thinner):
    """Counts each layer's outliers in the dense model; a scout.

    Attributes:
        factor: M.
        ratios: layer → share of its scores above M times their mean.
        sizes: layer → how many weights its linear modules have.
    """

    factor: float = 5.0
    average: Average = "tokens"
    ratios: dict[int, float] = field(default_factory=dict, compare=False)
    sizes: dict[int, int] = field(default_factory=dict, compare=False)
    sequential = False
    needs: frozenset[Need] = frozenset({"squares"})

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        import torch

        scores = [score for _, score in wanda_scores(layer)]
        if scores:
            size = sum(score.numel() for score in scores)
            mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / size
            above = sum(int((score > self.factor * mean).sum()) for score in scores)
            self.ratios[layer.number], self.sizes[layer.number] = above / size, size
        return {}
