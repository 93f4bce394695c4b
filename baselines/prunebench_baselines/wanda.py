"""Wanda: the weights go whose part in the output is small, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prunebench.errors import BadParameter, BudgetError
from prunebench.kinds import n_of_m
from prunebench.layerwise import UNSTRUCTURED, LayerView, LayerwiseStrategy, Thinned, Thinner
from prunebench.layerwise.contract import Average, Need
from prunebench.strategy import PlanContext
from prunebench_baselines.thinning import (
    check_finite,
    check_widths,
    keep_others,
    lowest_of_groups,
    lowest_of_rows,
    portion,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Wanda", "WandaThinner", "lowest_by_alpha", "wanda_scores"]

HIGHEST_ALPHA = 0.8
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Wanda(LayerwiseStrategy):
    """Zeroes the weights of least score in every output row: S_ij = |W_ij| · √(Σ_t a_t x_tj² / Σ_t a_t).

    Wanda (Sun et al., arXiv 2306.11695, github.com/locuslab/wanda). x_tj is what module input j was at token t. In each
    row the lowest ⌊columns · sparsity⌋ go, the earlier column of equal ones; with a pattern N:M all but the N highest
    of M neighbours.

    The released code keeps one sample's attention mask and positions for all; here every sample has its own, of its own
    length. It divides by the number of samples, not of tokens, which ranks the same as ``average=tokens``. A module
    that no calibration token went through (an expert) is thinned by |W_ij| alone.

    Args:
        sequential: statistics of a layer come from what the thinned layers before it give, as released; False: from
            the dense model's.
        average: every token weighs alike, or every sample (a_t = 1 / tokens of its sample).
        row_threshold: ``share``: every row loses as many weights. ``alpha``: every row loses its lowest weights up to
            the same share α of the row's score sum, with α in [0, 0.8] found by bisection so that the module comes
            within 0.001 of the sparsity (the released ``--use_variant``).
    """

    name = "wanda"
    paper = "https://arxiv.org/abs/2306.11695"

    sequential: bool = True
    average: Literal["tokens", "samples"] = "tokens"
    row_threshold: Literal["share", "alpha"] = "share"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != UNSTRUCTURED and self.row_threshold != "share":
            raise BadParameter(
                f"{self.name}: pattern {self.pattern} has no threshold by row: drop -P row_threshold=alpha"
            )

    def thinner(self, context: PlanContext, scout: Thinner | None) -> Thinner:
        return WandaThinner(
            dict.fromkeys(range(context.model.n_layers), context.share),
            self.sequential,
            self.average,
            groups=n_of_m(self.pattern),
            by_alpha=self.row_threshold == "alpha",
        )


@dataclass
class WandaThinner(Thinner):
    """One plan's thinner.

    Attributes:
        shares: layer → share of its weights that goes.
        groups: (N, M) of a pattern.
        by_alpha: rows lose the same share of their score sums, not of their weights.
    """

    shares: Mapping[int, float]
    sequential: bool = True
    average: Average = "tokens"
    groups: tuple[int, int] | None = None
    by_alpha: bool = False
    needs: frozenset[Need] = frozenset({"squares"})

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        check_widths(layer, self.groups)
        share, gone = self.shares.get(layer.number, 0.0), {}
        for name, scores in wanda_scores(layer):
            if self.groups is not None:
                gone[name] = lowest_of_groups(scores, *self.groups)
            elif self.by_alpha:
                gone[name] = lowest_by_alpha(scores, share, f"layer {layer.number} {name}")
            else:
                gone[name] = lowest_of_rows(scores, portion(scores.shape[1], share))
        return keep_others(gone)


def wanda_scores(layer: LayerView) -> Iterator[tuple[str, Tensor]]:
    """Module by module its name and |W_ij| · √(Σ_t a_t x_tj² / Σ_t a_t), (out, in) float32.

    A module that no calibration token went through (an expert) has |W_ij|: there is nothing else to tell by.

    Raises:
        CalibrationError: numbers that are not finite.
    """
    for name, view in layer.linears.items():
        scores = size_of(layer, name)
        if view.total:
            assert view.squares is not None
            scale = (view.squares / view.total).sqrt()
            scores *= check_finite(scale, layer, name).to(scores)
        yield name, scores


def lowest_by_alpha(scores: Tensor, share: float, where: str) -> Tensor:
    """True for each row's lowest scores whose sum is at most α of the row's; α such that `share` of all go.

    Args:
        scores: (rows, columns).
        share: of all that go, met within 0.001 (or one weight, where that is more).
        where: layer and module, for the message.

    Raises:
        BudgetError: no α in [0, 0.8] comes near.
    """
    import torch

    if not share:
        return torch.zeros_like(scores, dtype=torch.bool)
    ordered, order = scores.double().sort(dim=1, stable=True)
    reached = ordered.cumsum(1)
    low, high, best, nearest = 0.0, HIGHEST_ALPHA, None, float("inf")
    for _ in range(50):
        alpha = (low + high) / 2
        first = reached <= alpha * reached[:, -1:]
        found = float(first.sum()) / scores.numel()
        if abs(found - share) < nearest:
            best, nearest = first, abs(found - share)
        if nearest <= TOLERANCE:
            break
        low, high = (low, alpha) if found > share else (alpha, high)
    if best is None or nearest > max(TOLERANCE, 1.0 / scores.numel()):
        raise BudgetError(
            f"{where}: rows that lose the same part of their scores, at most {HIGHEST_ALPHA:g} of it, come no nearer "
            f"to sparsity {share:g} than {nearest:.3f}: use -P row_threshold=share"
        )
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, best)
