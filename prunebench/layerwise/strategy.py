"""Base of the methods that thin weights layer by layer; a run's plans of this kind are made in one sweep together."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from prunebench.errors import BadParameter
from prunebench.kinds import n_of_m
from prunebench.layerwise.contract import Thinner
from prunebench.plan import Plan
from prunebench.strategy import PlanContext, Strategy

__all__ = ["UNSTRUCTURED", "LayerwiseStrategy"]

UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class LayerwiseStrategy(Strategy):
    """A method that zeroes weights of the decoder's linear modules, layer by layer; ``--sparsity`` is their share.

    Args:
        samples: calibration samples, the first ones with domains taking turns.
        pattern: ``unstructured``, or N:M such as ``2:4``: at most N weights stay of every M neighbours of a row.
    """

    kind: ClassVar[str] = "weights"
    needs_model: ClassVar[bool] = True

    samples: int = 128
    pattern: str = UNSTRUCTURED

    def __post_init__(self) -> None:
        if self.pattern != UNSTRUCTURED and not n_of_m(self.pattern):
            raise BadParameter(f"{self.name}: pattern is unstructured or N:M with 0 < N < M, got {self.pattern!r}")
        if self.samples < 1:
            raise BadParameter(f"{self.name}: samples must be at least 1, got {self.samples}")

    @property
    def plan_kind(self) -> str:
        return self.kind if self.pattern == UNSTRUCTURED else self.pattern

    def scout(self, context: PlanContext) -> Thinner | None:
        """Looks at the dense model before anything is thinned; None where nothing has to be known beforehand.

        Strategies whose scouts are equal (``==``) before they have seen anything share one, in a run only one of them
        walks: make it a dataclass. Called more than once: make the object and do nothing else. It never thins anything.
        """
        return None

    @abc.abstractmethod
    def thinner(self, context: PlanContext, scout: Thinner | None) -> Thinner:
        """The thinner of this plan, given the scout after its walk through all layers."""

    def plan(self, context: PlanContext) -> Plan:
        from prunebench.layerwise.together import plan_together

        (plan,) = plan_together([(self, context)])
        if isinstance(plan, BaseException):
            raise plan
        return plan
