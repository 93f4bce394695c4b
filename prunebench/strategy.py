"""The contract of a pruning method: read a Trace, return a Plan. Never touch a weight.

A method is one frozen dataclass: hyper-parameters are its fields, the paper and the formula its docstring. Most authors
write `score` and nothing else::

    @dataclass(frozen=True)
    class Depth(ScoreStrategy):
        \"\"\"Deeper layers go first.\"\"\"

        name = "depth"

        def score(self, context):
            return np.arange(context.model.n_layers)
"""

from __future__ import annotations

import abc
import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from prunebench.budget import Budget, BudgetReport, achieved
from prunebench.errors import BadParameter, PlanError, PluginError, UnknownName
from prunebench.model_info import ModelInfo
from prunebench.plan import Plan, PlanCost, Provenance, ScoreTable, first_problem
from prunebench.selection import RULES, select_layers

if TYPE_CHECKING:
    from prunebench.calibration.trace import Trace

__all__ = ["PlanContext", "ScoreStrategy", "Strategy", "strategy_params"]


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
    """

    model: ModelInfo
    budget: Budget
    trace: Trace | None = None
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, Any] = field(default_factory=dict)

    @property
    def n_remove(self) -> int:
        """How many decoder layers the budget asks to remove."""
        return self.budget.layers_asked(self.model.n_layers)

    def need_trace(self) -> Trace:
        if self.trace is None:
            raise PlanError("this strategy needs calibration statistics, and none were collected")
        return self.trace


@dataclass(frozen=True)
class Strategy(abc.ABC):
    """Base of all methods. Subclasses are frozen dataclasses; their fields are what ``-P name=value`` sets."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "layers"
    paper: ClassVar[str] = ""
    stochastic: ClassVar[bool] = False
    """True if the plan depends on the seed: such a method is run with several and shown as a band."""

    control: ClassVar[bool] = False
    """True for a method that ``--controls`` adds to every table."""

    def requires(self) -> frozenset[str]:
        """Names of the calibration statistics that `plan` reads (see `prunebench.calibration.collect.STATISTICS`)."""
        return frozenset()

    @abc.abstractmethod
    def plan(self, context: PlanContext) -> Plan:
        """Decide what to remove."""

    @classmethod
    def check_class(cls) -> None:
        """Raise PluginError where the class breaks the contract (called when it is registered)."""
        own = vars(cls).get("__dataclass_params__")  # an undecorated subclass would lose its parameters in silence
        if own is None or not own.frozen:
            raise PluginError(f"{cls.__name__} must be decorated with @dataclass(frozen=True)")
        if without := [f.name for f in dataclasses.fields(cls) if _no_default(f)]:
            raise PluginError(f"{cls.__name__}: parameter {without[0]!r} has no default value")

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    @classmethod
    def from_params(cls, params: Mapping[str, Any] | None = None) -> Strategy:
        """Build the strategy from typed or textual values (``{"k": "25"}``).

        Raises:
            UnknownName: a parameter that does not exist, with the nearest one.
            BadParameter: a value of the wrong type or outside its range.
        """
        types = strategy_params(cls)
        values: dict[str, Any] = {}
        for key, raw in (params or {}).items():
            if key not in types:
                raise UnknownName(f"parameter of strategy {cls.name!r}", key, types)
            text = isinstance(raw, str)
            try:
                adapter = TypeAdapter(types[key], config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
                values[key] = adapter.validate_strings(raw) if text else adapter.validate_python(raw)
            except ValidationError as error:
                raise BadParameter(f"{cls.name}: {key}={raw}: {first_problem(error)}") from error
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:  # from a __post_init__ that checks ranges
            raise BadParameter(f"{cls.name}: {error}") from error

    def params(self) -> dict[str, Any]:
        """The hyper-parameters as JSON-able values."""
        return dataclasses.asdict(self)

    def build_plan(
        self,
        context: PlanContext,
        layers: Iterable[int],
        *,
        scores: ScoreTable | None = None,
        protected: Iterable[int] = (),
        selection: str = "",
    ) -> Plan:
        """The plan that removes `layers`, with budget, provenance and cost filled in from `context`."""
        layers = sorted(int(layer) for layer in layers)
        n_layers = context.model.n_layers
        if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
            raise PlanError(f"{self.name}: layer {outside[0]} does not exist: the model has layers 0..{n_layers - 1}")
        trace = context.trace
        return Plan.drop(
            context.model,
            layers,
            kind=self.kind,
            scores=scores,
            budget=BudgetReport(
                asked=context.budget, layers_asked=context.n_remove, achieved=achieved(context.model, layers)
            ),
            provenance=Provenance(
                strategy=self.name,
                params=self.params(),
                seed=context.seed,
                selection=selection,
                protected=tuple(sorted(protected)),
                calibration_fingerprint=trace.meta.fingerprint if trace else None,
                trace_digest=trace.meta.key if trace else None,
                warnings=tuple(context.warnings),
                notes=dict(context.notes),
            ),
            cost=PlanCost(
                forward_passes=trace.meta.n_samples if trace else 0,
                calibration_tokens=trace.meta.tokens if trace else 0,
                calibration_seconds=trace.meta.seconds if trace else 0.0,
            ),
        )


@dataclass(frozen=True)
class ScoreStrategy(Strategy):
    """A method that scores every layer; a selection rule then picks. Higher score means removed earlier.

    Args:
        select: selection rule (``independent``, ``contiguous``, ``spaced``).
        min_gap: for ``spaced``, the least distance of two removed layers.
        protect_first: how many of the first layers must stay.
        protect_last: how many of the last layers must stay.
    """

    meaning: ClassVar[str] = ""
    """What a high score says, in words."""

    select: str = "independent"
    min_gap: int = 2
    protect_first: int = 0
    protect_last: int = 0

    def __post_init__(self) -> None:
        if self.select not in RULES:
            raise UnknownName("selection rule", self.select, RULES)

    @abc.abstractmethod
    def score(self, context: PlanContext) -> np.ndarray | ScoreTable:
        """One value per decoder layer, shape (L,)."""

    def plan(self, context: PlanContext) -> Plan:
        n_layers = context.model.n_layers
        if self.protect_first < 0 or self.protect_last < 0:
            raise BadParameter(f"{self.name}: protect_first and protect_last must not be negative")
        protected = {
            layer for layer in range(n_layers) if layer < self.protect_first or layer >= n_layers - self.protect_last
        }
        protected |= set(context.model.protected)
        count = context.n_remove
        raw = self.score(context)
        if not isinstance(raw, ScoreTable):
            values = np.asarray(raw, dtype=np.float64)
            if values.shape != (n_layers,):
                raise PlanError(f"{self.name}: score() must return {n_layers} values, got shape {values.shape}")
            raw = ScoreTable(values=tuple(values.tolist()), meaning=self.meaning or self.summary())
        layers = select_layers(raw.values, count, rule=self.select, protected=sorted(protected), min_gap=self.min_gap)
        return self.build_plan(context, layers, scores=raw, protected=protected, selection=self.select)


def strategy_params(cls: type[Strategy]) -> dict[str, Any]:
    """Parameter names and their types, in declaration order of the method's own fields first."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _no_default(parameter: dataclasses.Field) -> bool:
    return parameter.default is dataclasses.MISSING and parameter.default_factory is dataclasses.MISSING
