"""What a strategy is given: the model's shape, the budget, the statistics, and where to leave notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunebench.budget import Budget
from prunebench.errors import PlanError
from prunebench.model_info import ModelInfo

if TYPE_CHECKING:
    from prunebench.calibration.trace import Trace

__all__ = ["PlanContext"]


@dataclass
class PlanContext:
    """All that a strategy may look at.

    Attributes:
        model: shape and cost of the model, no weights.
        budget: what was asked for.
        trace: the calibration statistics; None only for strategies that require none.
        seed: for stochastic strategies.
        warnings: lines that a strategy wants the user and the plan to carry.
        notes: JSON-able facts for the plan's provenance.
        artefacts: live objects for figures; never serialised.
        probe: losses and gradients of the dense model with layers left out; None unless the strategy `needs_model`.
    """

    model: ModelInfo
    budget: Budget
    trace: Trace | None = None
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, Any] = field(default_factory=dict)
    probe: Any | None = None

    @property
    def n_remove(self) -> int:
        """How many decoder layers the budget asks to remove."""
        return self.budget.layers_asked(self.model.n_layers)

    @property
    def share(self) -> float:
        """The budget as a share in [0, 1), of whatever the strategy removes or zeroes.

        Raises:
            BudgetError: as many layers as there are, or more.
        """
        if self.budget.unit == "sparsity":
            return self.budget.value
        return self.n_remove / self.model.n_layers

    def need_trace(self) -> Trace:
        """The calibration statistics.

        Raises:
            PlanError: none were collected.
        """
        if self.trace is None:
            raise PlanError(
                "this strategy needs calibration statistics, and none were collected: name them in its requires()"
            )
        return self.trace

    def need_probe(self) -> Any:
        """What answers questions to the dense model (`prunebench.probing.Probe`).

        Raises:
            PlanError: none was made.
        """
        if self.probe is None:
            raise PlanError("this strategy asks the model itself, and no probe was made: set needs_model = True")
        return self.probe
