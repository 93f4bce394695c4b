"""SparseGPT: the weights go that can be made up for best, and the others of their row make up for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from prunebench.errors import BadParameter, CalibrationError
from prunebench.kinds import n_of_m
from prunebench.layerwise import LayerView, LayerwiseStrategy, LinearView, Thinned, Thinner
from prunebench.layerwise.contract import Need
from prunebench.strategy import PlanContext
from prunebench_baselines.obs import inverse_factor, prune_columns
from prunebench_baselines.thinning import check_finite, check_widths

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SparseGPT", "SparseGPTThinner"]

HIGHEST_DAMPING = 1.0
Arithmetic = Literal["float32", "float64"]


@dataclass(frozen=True)
class SparseGPT(LayerwiseStrategy):
    """Zeroes weights w_ij of least w_ij² / U_jj² and lets those to the right in the row make up for them.

    SparseGPT (Frantar & Alistarh, arXiv 2301.00774, github.com/IST-DASLab/sparsegpt). With H = Σ_t x_t x_tᵀ / T of a
    module's inputs, λ = `damping` · mean(diag H) and UᵀU = (H + λI)⁻¹, U upper triangular, columns are gone through in
    blocks of `block_size`. In each block the ⌊rows · columns · sparsity⌋ lowest of all rows together go, whatever row
    they stand in (the released code's threshold takes one more); with a pattern N:M, all but the N highest of M
    neighbours, chosen when their first column is reached. When w_ij goes, w_i,k ← w_i,k − (w_ij / U_jj) U_jk for all
    k > j. An input that is always zero takes its weights with it: they are zero, whether they count as gone or not.

    Where H + λI is not positive definite the damping is raised tenfold, up to 1, and a warning names the module. A
    module that no calibration token went through (an expert) has H = I.

    Args:
        block_size: columns within which weights compete; M of a pattern has to divide it.
        damping: λ as a share of the mean diagonal of H, over the inputs that are not always zero.
        sequential: H of a layer comes from what the thinned layers before it give, as released; False: from the dense
            model's.
        arithmetic: number format of the factorisation and of the updates.
    """

    name = "sparsegpt"
    paper = "https://arxiv.org/abs/2301.00774"

    block_size: Annotated[int, Ge(1)] = 128
    damping: Annotated[float, Gt(0)] = 0.01
    sequential: bool = True
    arithmetic: Arithmetic = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = n_of_m(self.pattern)
        if self.block_size < 1 or not self.damping > 0:
            raise BadParameter(f"{self.name}: block_size must be at least 1 and damping above 0")
        if groups is not None and self.block_size % groups[1]:
            raise BadParameter(
                f"{self.name}: block_size={self.block_size} would cut through groups of pattern {self.pattern}: "
                f"{groups[1]} has to divide it"
            )

    def thinner(self, context: PlanContext, scout: Thinner | None) -> Thinner:
        return SparseGPTThinner(
            dict.fromkeys(range(context.model.n_layers), context.share),
            self.sequential,
            groups=n_of_m(self.pattern),
            block_size=self.block_size,
            damping=self.damping,
            arithmetic=self.arithmetic,
            warn=lambda line: context.warnings.append(f"{self.name}: {line}"),
        )


@dataclass
class SparseGPTThinner(Thinner):
    """One plan's thinner.

    Attributes:
        shares: layer → share of its weights that goes.
        groups: (N, M) of a pattern.
        warn: takes a line on a module whose damping was raised.
    """

    shares: Mapping[int, float]
    sequential: bool = True
    groups: tuple[int, int] | None = None
    block_size: int = 128
    damping: float = 0.01
    arithmetic: Arithmetic = "float32"
    warn: Callable[[str], None] = lambda line: None
    needs: frozenset[Need] = frozenset({"hessian"})

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        check_widths(layer, self.groups)
        share, thinned = self.shares.get(layer.number, 0.0), {}
        if self.groups is None and not share:
            return thinned
        for view, factor in self._factors(layer):
            weight = check_finite(view.weight.detach().to(factor.dtype), layer, view.name)
            dead = view.hessian.diagonal().to(weight.device) == 0 if view.total else None
            if dead is not None:
                weight = weight.masked_fill(dead, 0)
            changed, keep = prune_columns(weight, factor, share=share, groups=self.groups, block_size=self.block_size)
            if not bool(keep.all()):
                thinned[view.name] = Thinned(keep, check_finite(changed, layer, view.name).to(view.weight.dtype))
        return thinned

    def _factors(self, layer: LayerView) -> Iterator[tuple[LinearView, Tensor]]:
        """Every module with the factor of its inverse Hessian; neighbours with the same input have the same one.

        Raises:
            CalibrationError: a Hessian that is not finite, or that the highest damping does not make positive definite.
        """
        last = factor = used = None
        for name, view in layer.linears.items():
            if view.hessian is None or view.hessian is not last:
                last, factor = view.hessian, None  # the old one goes before the new one is made: it may be large
                factor, used = self._factor(layer, view)
            if used != self.damping:
                self.warn(
                    f"layer {layer.number} {name}: the Hessian is not positive definite with damping {self.damping:g}: "
                    f"{used:g} was used"
                )
            yield view, factor

    def _factor(self, layer: LayerView, view: LinearView) -> tuple[Tensor, float]:
        import torch

        dtype, device, where = getattr(torch, self.arithmetic), view.weight.device, f"layer {layer.number} {view.name}"
        if not view.total:
            return torch.eye(view.weight.shape[1], dtype=dtype, device=device), self.damping
        assert view.hessian is not None
        hessian = check_finite(view.hessian, layer, view.name).to(device, dtype) / view.total
        damping = self.damping
        while (factor := inverse_factor(hessian, damping)) is None:
            if damping >= HIGHEST_DAMPING:
                raise CalibrationError(
                    f"{where}: the Hessian is not positive definite, even with damping {damping:g}: "
                    "try a larger -P damping, --dtype float32, or other calibration samples"
                )
            damping = min(10 * damping, HIGHEST_DAMPING)
        return factor, damping
