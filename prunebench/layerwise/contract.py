"""The contract of methods that thin weights layer by layer: what they are shown of a layer, and what they answer.

A `Thinner` is one plan in the making. The sweep (`prunebench.layerwise.sweep`) walks the decoder once, shows every
thinner one layer after another with what its linear modules were given on the calibration tokens, and forgets these
statistics before the next layer: memory is bounded by one layer's Hessians, whatever the depth. Thinners are called in
inference mode.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Average", "Call", "LayerView", "LinearView", "Need", "Thinned", "Thinner"]

Need = Literal["squares", "hessian", "attention"]
Average = Literal["tokens", "samples"]


@dataclass(frozen=True)
class Call:
    """What one linear module did with one sample, padding left out (T tokens).

    Attributes:
        layer: original id.
        module: path in the layer, e.g. ``mlp.down_proj``.
        sample: number of the sample among those of the sweep.
        inputs: (T, in), in the model's number format.
        outputs: (T, out).
        groups: token group (``text``, ``visual``, ``audio``) → (T,) bool; they are disjoint and cover all tokens.
        attention: (T,) float32, the last token's attention in this layer, mean over heads; None unless it was needed.
    """

    layer: int
    module: str
    sample: int
    inputs: Tensor
    outputs: Tensor
    groups: Mapping[str, Tensor]
    attention: Tensor | None = None


@dataclass
class LinearView:
    """One linear module of the layer at hand.

    With a_t the weight of token t (1 by default; 1 / T_sample with ``average="samples"``; what `Thinner.count` says):

    Attributes:
        name: path in the layer.
        weight: (out, in) the dense model's own parameter: read it, never write to it.
        squares: (in,) float64, Σ_t a_t x_tj²; None unless needed.
        hessian: (in, in) float32, Σ_t a_t x_t x_tᵀ; None unless needed. Modules with the same input share the tensor.
        total: Σ_t a_t.
    """

    name: str
    weight: Tensor
    squares: Tensor | None = None
    hessian: Tensor | None = None
    total: float = 0.0


@dataclass
class LayerView:
    """A layer with all of its linear modules, in the order of the layer's own module tree."""

    number: int
    linears: dict[str, LinearView] = field(default_factory=dict)


@dataclass(frozen=True)
class Thinned:
    """What becomes of a weight.

    Attributes:
        keep: (out, in) bool, False where the weight becomes zero.
        weight: (out, in) new values where they change beyond that (zero where `keep` is False); None: they stay.
    """

    keep: Tensor
    weight: Tensor | None = None


class Thinner(abc.ABC):
    """Decides one layer after another what becomes of its linear modules."""

    sequential: bool = True
    """True: a layer is shown what comes out of the layers before it as this thinner left them. False: of dense ones."""

    needs: frozenset[Need] = frozenset()
    average: Average = "tokens"
    watches: bool = False
    """True: `count` is called for every module and sample."""

    def count(self, call: Call) -> Tensor | None:
        """Weights (T,) of the tokens in this module's statistics; None counts all alike."""
        return None

    @abc.abstractmethod
    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        """Module name → what becomes of it; modules that are not named stay. Called once per layer, ascending.

        Raises:
            PruneBenchError: with the layer and module in its line; this thinner's plan fails, the others go on.
        """
