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
import functools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from prunebench.budget import BudgetReport, achieved
from prunebench.errors import BadParameter, PlanError, PluginError, UnknownName
from prunebench.kinds import removes_layers
from prunebench.ops import DropLayer, Op, removed_sublayers
from prunebench.plan import Plan, PlanCost, Provenance, ScoreTable, first_problem
from prunebench.plan_context import PlanContext
from prunebench.selection import READS_WINDOWS, RULES, removal_order, run_scores

__all__ = ["Choice", "PlanContext", "ScoreStrategy", "Strategy", "strategy_params"]


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

    in_all: ClassVar[bool] = True
    """False for a method that ``plan --strategy all`` leaves out unless a parameter is given to it by name."""

    needs_model: ClassVar[bool] = False
    """True for a method that asks the dense model again: the context then holds a `probe` (`prunebench.probing`)."""

    weights_only: ClassVar[bool] = False
    """True for a method that asks the model about its weights alone: its probe has no samples."""

    @property
    def plan_kind(self) -> str:
        """Kind of the plans of this instance: what they are compared with."""
        return self.kind

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
        return (cls.__doc__ or "").strip().partition("\n")[0].rstrip()

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
        layers: Iterable[int] = (),
        *,
        ops: Sequence[Op] | None = None,
        tensors: Mapping[str, Any] | None = None,
        scores: ScoreTable | None = None,
        protected: Iterable[int] = (),
        selection: str = "",
    ) -> Plan:
        """The plan that removes `layers` and does `ops`, with budget, provenance and cost filled in from `context`.

        Args:
            context: what the strategy was given.
            layers: original ids of layers to remove whole.
            ops: further operations (`prunebench.ops`).
            tensors: name → array or tensor, for operations that read some.
            scores: one value per layer.
            protected: layers that had to stay.
            selection: the rule that picked.

        Raises:
            PlanError: a layer that does not exist, operations that contradict each other, tensors that do not fit.
        """
        layers = sorted(int(layer) for layer in layers)
        n_layers = context.model.n_layers
        if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
            raise PlanError(f"{self.name}: layer {outside[0]} does not exist: the model has layers 0..{n_layers - 1}")
        trace, found = context.trace, [*(DropLayer(layer=layer) for layer in layers), *(ops or ())]
        plan = Plan.of(
            context.model,
            found,
            tensors,
            # Parts of layers are no whole layers: such a plan is not ranked among those by their number.
            kind="sublayers" if self.kind == "layers" and removed_sublayers(found) else self.plan_kind,
            scores=scores,
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
        report = BudgetReport(
            asked=context.budget,
            layers_asked=context.n_remove if removes_layers(plan.kind) else 0,
            achieved=achieved(context.model, ops=plan.ops, tensors=plan.tensors),
        )
        return plan.model_copy(update={"budget": report})


class Choice(NamedTuple):
    """What a score and a selection rule came to: layers to remove in order of removal, all scores, what had to stay."""

    layers: list[int]
    scores: ScoreTable
    protected: frozenset[int]


@dataclass(frozen=True)
class ScoreStrategy(Strategy):
    """A method that scores every layer; a selection rule then picks. Higher score means removed earlier.

    Args:
        select: selection rule (a name from `prunebench.selection.RULES`).
        min_gap: for ``spaced``, the least distance of two removed layers.
        epsilon: for ``global_threshold``, the share of the highest score above which a layer goes.
        protect_first: how many of the first layers must stay.
        protect_last: how many of the last layers must stay.
    """

    meaning: ClassVar[str] = ""
    """What a high score says, in words."""

    select: str = "independent"
    min_gap: int = 2
    protect_first: int = 0
    protect_last: int = 0
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.select not in RULES:
            raise UnknownName("selection rule", self.select, RULES)
        if self.epsilon is not None and self.select != "global_threshold":
            raise BadParameter(f"epsilon is for select=global_threshold, not for select={self.select}")

    @abc.abstractmethod
    def score(self, context: PlanContext) -> np.ndarray | ScoreTable:
        """One value per decoder layer, shape (L,)."""

    def windows(self, context: PlanContext) -> np.ndarray | None:
        """Scores of removing whole blocks, (L+1, L+1): entry [a, b], a < b, is that of layers [a, b); NaN elsewhere.

        None (the default): a block is worth the mean of its layers' scores.
        """
        return None

    def rescore(self, context: PlanContext, removed: tuple[int, ...]) -> np.ndarray:
        """Scores (L,) once `removed` (in order of removal) are gone; what it says of those is not looked at.

        By default from `windows`: a layer is worth what the run of removed layers is that it would complete; without
        windows the scores stay what they were.
        """
        windows = self.windows(context)
        return np.array(self.score_table(context).values) if windows is None else run_scores(windows, removed)

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        """Layers that this method never removes, beyond those that the user or the architecture protects."""
        return frozenset()

    def layers_to_remove(self, context: PlanContext) -> int:
        """How many layers to remove; a method that rounds in a way of its own says so here."""
        return context.n_remove

    def must_stay(self, context: PlanContext) -> frozenset[int]:
        """Layers that the user or the architecture protects.

        Raises:
            BadParameter: a negative number of protected layers.
        """
        n_layers = context.model.n_layers
        if self.protect_first < 0 or self.protect_last < 0:
            raise BadParameter(f"{self.name}: protect_first and protect_last must not be negative")
        ends = [layer for layer in range(n_layers) if not self.protect_first <= layer < n_layers - self.protect_last]
        return frozenset(ends) | frozenset(context.model.protected)

    def protected_layers(self, context: PlanContext) -> frozenset[int]:
        """All layers that no selection rule may take."""
        return self.must_stay(context) | self.never_removed(context)

    def score_table(self, context: PlanContext) -> ScoreTable:
        """What `score` returns, as a table.

        Raises:
            PlanError: not one value per layer.
        """
        raw = self.score(context)
        table = raw if isinstance(raw, ScoreTable) else None
        values = np.asarray(raw.values if table else raw, dtype=np.float64)
        n_layers = context.model.n_layers
        if values.shape != (n_layers,):
            raise PlanError(f"{self.name}: score() must return {n_layers} values, got shape {values.shape}")
        return table or ScoreTable(values=tuple(values.tolist()), meaning=self.meaning or self.summary())

    def choose(self, context: PlanContext) -> Choice:
        """Score and select; `plan` makes a plan of it that drops the chosen layers."""
        protected, count = self.protected_layers(context), self.layers_to_remove(context)
        table = self.score_table(context)
        windows = self.windows(context) if self.select in READS_WINDOWS else None
        rescore = None
        if type(self).rescore is not ScoreStrategy.rescore:
            rescore = functools.partial(self.rescore, context)
        elif windows is not None:  # as the default `rescore`, without asking for the windows again at every step
            rescore = functools.partial(run_scores, windows)
        layers = removal_order(
            table.values,
            count,
            rule=self.select,
            protected=sorted(protected),
            min_gap=self.min_gap,
            epsilon=self.epsilon,
            windows=windows,
            rescore=rescore,
            warn=lambda line: context.warnings.append(f"{self.name}: {line}"),
        )
        if self.select == "greedy":
            context.notes["removal_order"] = list(layers)
        return Choice(layers, table, protected)

    def plan(self, context: PlanContext) -> Plan:
        layers, table, protected = self.choose(context)
        return self.build_plan(context, layers, scores=table, protected=protected, selection=self.select)


def strategy_params(cls: type[Strategy]) -> dict[str, Any]:
    """Parameter names and their types, in declaration order of the method's own fields first."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _no_default(parameter: dataclasses.Field) -> bool:
    return parameter.default is dataclasses.MISSING and parameter.default_factory is dataclasses.MISSING
