"""One thinner on its way through the decoder: what it has done so far, and what that would have cost it alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunebench.errors import PlanError
from prunebench.layerwise.contract import LayerView, Thinner
from prunebench.layerwise.strategy import UNSTRUCTURED
from prunebench.ops import Op

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Walker"]


@dataclass(eq=False)
class Walker:
    """A thinner, and its plan as far as it is made.

    Attributes:
        thinner: the method.
        pattern: what its masks keep to.
        scouts: True where it only looks: it thins nothing.
        ops, tensors: of the plan.
        shares: share of the weights of linear modules that become zero, by layer; NaN where there is no such module.
        error: why there is no plan.
        seconds: wall time of its own work, and all of what it shared.
        layer_forwards: layers run, once per sample, as if it had been alone.
        token_layers: the same times tokens, without padding.
        peak: bytes that were held at most, as `prunebench.plan.PlanCost.peak_memory` says.
        unseen: modules that no calibration token went through.
    """

    thinner: Thinner
    pattern: str = UNSTRUCTURED
    scouts: bool = False
    ops: list[Op] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0.0
    layer_forwards: float = 0.0
    token_layers: float = 0.0
    peak: int = 0
    unseen: list[str] = field(default_factory=list)

    @property
    def statistics(self) -> frozenset[str]:
        """Sums that it is shown."""
        return self.thinner.needs & {"squares", "hessian"}

    @property
    def reads_inputs(self) -> bool:
        """Whether the model has to run for it at all."""
        return bool(self.statistics) or self.thinner.watches

    @property
    def leaves(self) -> bool:
        """Whether it goes on with what its own layers give, once it has changed one."""
        return self.thinner.sequential and not self.scouts

    def thin(self, view: LayerView, linears: dict[str, nn.Linear]) -> tuple[list[Op], dict[str, Tensor], int]:
        """Ask the thinner about a layer and note its answer.

        Returns:
            The operations on the layer, the tensors that they read, and the bytes of all that was answered.
        """
        from prunebench.layerwise.thinned import layer_ops

        answers = self.thinner.thin(view) or {}
        if self.scouts and answers:
            raise PlanError(f"layer {view.number}: a scout of {type(self.thinner).__name__} thins, and may only look")
        ops, tensors, zeros = layer_ops(view.number, linears, answers, self.pattern)
        self.ops += ops
        self.tensors |= tensors
        total = sum(module.weight.numel() for module in linears.values())
        self.shares.append(zeros / total if total else float("nan"))
        given = [tensor for answer in answers.values() for tensor in (answer.keep, answer.weight)]
        return ops, tensors, sum(t.numel() * t.element_size() for t in given if t is not None)
