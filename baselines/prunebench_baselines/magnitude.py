"""Magnitude: the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from prunebench.errors import BadParameter
from prunebench.kinds import n_of_m
from prunebench.layerwise import UNSTRUCTURED, LayerView, LayerwiseStrategy, Thinned, Thinner
from prunebench.strategy import PlanContext
from prunebench_baselines.thinning import (
    Cut,
    check_widths,
    keep_others,
    lowest_of_all,
    lowest_of_groups,
    lowest_of_rows,
    portion,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Magnitude", "MagnitudeThinner"]

Scope = Literal["module", "row", "layer", "model"]


@dataclass(frozen=True)
class Magnitude(LayerwiseStrategy):
    """Zeroes the smallest weights: score |W_ij|, compared within each linear module. It looks at no sample.

    The baseline of Wanda and SparseGPT; Han et al., arXiv 1506.02626. Exactly ⌊weights · sparsity⌋ of each scope go,
    of equal ones the earlier (the released code's threshold takes one more, and all that are equal to it).

    Args:
        samples: unused: no sample is read.
        scope: weights are compared with those of the same ``module`` (as in Wanda's repository), output ``row``,
            ``layer``, or of the whole ``model``. A pattern compares within its groups, whatever the scope.
    """

    name = "magnitude"
    paper = "https://arxiv.org/abs/1506.02626"
    weights_only = True

    scope: Scope = "module"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != UNSTRUCTURED and self.scope != "module":
            raise BadParameter(
                f"{self.name}: pattern {self.pattern} compares neighbours, so it takes no scope: drop -P scope"
            )

    def scout(self, context: PlanContext) -> Thinner | None:
        return WholeModel() if self.scope == "model" else None

    def thinner(self, context: PlanContext, scout: Thinner | None) -> Thinner:
        shares = dict.fromkeys(range(context.model.n_layers), context.share)
        whole = scout if isinstance(scout, WholeModel) else None
        cut = whole.cut(context.share) if whole else None
        return MagnitudeThinner(shares, self.scope, n_of_m(self.pattern), whole, cut)


@dataclass
class WholeModel(Thinner):
    """Remembers where the weights of all layers are, to compare them with each other; nothing is copied."""

    sequential = False
    weights: dict[tuple[int, str], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        for name, view in layer.linears.items():
            self.weights[layer.number, name] = view.weight.detach()
        return {}

    def cut(self, share: float) -> Cut:
        """The size up to which weights of the model go."""
        weights = list(self.weights.values())
        return Cut.at(weights, portion(sum(weight.numel() for weight in weights), share))


@dataclass
class MagnitudeThinner(Thinner):
    """One plan's thinner.

    Attributes:
        shares: layer → share of its weights that goes.
        scope: within which weights are compared.
        groups: (N, M) of a pattern.
        whole, cut: for the scope ``model``, all weights, and up to where they go.
    """

    shares: Mapping[int, float]
    scope: Scope = "module"
    groups: tuple[int, int] | None = None
    whole: WholeModel | None = None
    cut: Cut | None = None
    sequential = False

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        check_widths(layer, self.groups)
        share = self.shares.get(layer.number, 0.0)
        if self.scope == "layer":
            found = [size_of(layer, name) for name in layer.linears]
            gone = lowest_of_all(found, portion(sum(size.numel() for size in found), share))
            return keep_others(dict(zip(layer.linears, gone, strict=True)))
        return keep_others({name: self._gone(layer, name, size_of(layer, name), share) for name in layer.linears})

    def _gone(self, layer: LayerView, module: str, size: Tensor, share: float) -> Tensor:
        if self.groups is not None:
            return lowest_of_groups(size, *self.groups)
        if self.whole is not None and self.cut is not None:
            return self.cut.below(size, list(self.whole.weights).index((layer.number, module)))
        if self.scope == "row":
            return lowest_of_rows(size, portion(size.shape[1], share))
        (gone,) = lowest_of_all([size], portion(size.numel(), share))
        return gone
