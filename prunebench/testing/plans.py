"""What the plans of a strategy have to keep to, whatever it computes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.budget import Budget
from prunebench.errors import BudgetError, CalibrationError, PruneBenchError, first_line, typed_line
from prunebench.kinds import n_of_m
from prunebench.plan import Plan
from prunebench.strategy import PlanContext, Strategy
from prunebench.surgery import pruned
from prunebench.testing.bench import Bench
from prunebench.testing.report import Checklist, Failed, Skipped
from prunebench.testing.state import ModelState, trace_change

__all__ = ["ON_MODEL", "StrategyCase"]

SEEDS = 8

ON_MODEL = Checklist()


class StrategyCase:
    """A strategy class with parameters, and the bench that its plans are made on (None for the class alone)."""

    def __init__(
        self, cls: type[Strategy], bench: Bench | None = None, params: Mapping[str, Any] | None = None
    ) -> None:
        self.cls, self._bench, self._params = cls, bench, dict(params or {})

    @property
    def bench(self) -> Bench:
        assert self._bench is not None
        return self._bench

    @cached_property
    def strategy(self) -> Strategy:
        return self.new()

    def new(self) -> Strategy:
        """Another instance, so that nothing is carried over."""
        return self.cls.from_params(self._params) if self._params else self.cls()

    @property
    def n_layers(self) -> int:
        return self.bench.loaded.info.n_layers

    def context(self, budget: Budget, seed: int = 0, protected: tuple[int, ...] | None = None) -> PlanContext:
        """A fresh context with exactly the statistics that the strategy asks for."""
        info = self.bench.loaded.info
        if protected is not None:
            info = info.model_copy(update={"protected": protected})
        trace = self.bench.trace(frozenset(self.strategy.requires()))
        probe = self.bench.probe() if self.strategy.needs_model else None
        return PlanContext(model=info, budget=budget, trace=trace, seed=seed, probe=probe)

    def plan(self, budget: Budget | int, **parts: Any) -> Plan:
        """A plan of a new instance."""
        budget = Budget(value=budget, unit="layers") if isinstance(budget, int) else budget
        return self.plan_in(self.context(budget, **parts))

    def plan_in(self, context: PlanContext) -> Plan:
        """A plan of a new instance; where the model cannot show what the strategy reads, the check is left out."""
        unavailable = context.trace.meta.unavailable if context.trace is not None else {}
        try:
            plan = self.new().plan(context)
        except CalibrationError as error:
            if str(error) in unavailable.values():
                raise Skipped(first_line(error)) from error
            raise
        if not isinstance(plan, Plan):
            raise Failed(f"plan() returned {type(plan).__name__}: return self.build_plan(context, layers)")
        return plan

    @cached_property
    def largest(self) -> int:
        """The most layers that this strategy removes from this model."""
        for count in range(self.n_layers - 1, -1, -1):
            try:
                self.plan(count)
                return count
            except Skipped:
                raise
            except (Exception, SystemExit) as error:
                last = error
        if isinstance(last, BudgetError):
            raise Failed(f"plan() refuses every budget, 0 layers too: {first_line(last)}")
        raise last

    @cached_property
    def some(self) -> int:
        """Half of the layers, or as many as may go."""
        return min(self.n_layers // 2, self.largest)

    @cached_property
    def usual(self) -> Budget:
        """A budget that the strategy can meet: half of the layers or as many as may go; of a pattern its own share."""
        pattern = n_of_m(self.strategy.plan_kind)
        if pattern is not None:
            return Budget(value=1 - pattern[0] / pattern[1])
        return Budget(value=self.some, unit="layers")

    @cached_property
    def little(self) -> Budget:
        """The least that can be asked for: one layer's worth; of a pattern its own share."""
        return self.usual if n_of_m(self.strategy.plan_kind) else Budget(value=1, unit="layers")

    @cached_property
    def removes_nothing(self) -> bool:
        """True where the strategy declares in its plan that it answers every budget with sparsity 0."""
        report = self.plan(self.usual).budget
        return report is not None and report.asked.value == 0

    def need_layers(self) -> None:
        """Skip what is about whole layers where the strategy removes something else, or nothing."""
        ends = [getattr(self.strategy, name, 0) for name in ("protect_first", "protect_last")]
        if sum(ends) >= self.n_layers:
            raise Skipped(f"protect_first={ends[0]} and protect_last={ends[1]} keep all {self.n_layers} layers")
        if self.strategy.kind != "layers":
            raise Skipped(f"the strategy removes {self.strategy.kind}, not layers")
        if self.removes_nothing:
            raise Skipped("the strategy declares that it removes nothing")


@ON_MODEL
def model_untouched(case: StrategyCase) -> None:
    """plan() leaves weights, configuration, hooks and flags of the model as they were."""
    case.context(Budget(value=0.0))  # the one pass over the calibration samples is not the strategy's
    before = ModelState.of(case.bench.loaded)
    with suppress(BudgetError):  # its own protection may keep all of a small model
        case.plan(case.little)
    if change := before.change(ModelState.of(case.bench.loaded)):
        case.bench.forget()
        raise Failed(f"plan() changed {change}: a strategy reads the trace and never touches the model")


@ON_MODEL
def trace_untouched(case: StrategyCase) -> None:
    """plan() leaves the trace as it was: all strategies of a run share it."""
    context = case.context(case.little)
    if context.trace is None:
        raise Skipped("the strategy reads no statistics")
    before = case.bench.trace(frozenset(case.strategy.requires()))
    with suppress(BudgetError):
        case.plan_in(context)
    if before is not None and (change := trace_change(before, context.trace)):
        raise Failed(f"plan() changed {change} of the trace: copy before computing in place")


@ON_MODEL
def contract(case: StrategyCase) -> None:
    """The plan is for this model, in original layer ids, of the declared kind, and says who made it."""
    plan, info = case.plan(case.usual), case.bench.loaded.info
    made_for = (plan.target.model, plan.target.revision, plan.target.n_layers)
    if made_for != (info.name, info.revision, info.n_layers):
        raise Failed(f"the plan is for {made_for[0]} with {made_for[2]} layers, not {info.name}: use self.build_plan")
    if plan.kind != case.strategy.plan_kind:
        raise Failed(f"the plan is of kind {plan.kind!r}, the strategy declares {case.strategy.plan_kind!r}")
    if plan.provenance is None or plan.provenance.strategy != case.cls.name:
        raise Failed("the plan does not say which strategy made it: use self.build_plan")
    if plan.provenance.params != case.strategy.params():
        raise Failed(f"the plan says the parameters were {plan.provenance.params}, they are {case.strategy.params()}")


@ON_MODEL
def budget(case: StrategyCase) -> None:
    """Exactly as many layers go as were asked for, in shares and in numbers."""
    case.need_layers()
    asked = [Budget(value=share) for share in (0.2, 0.25, 0.5)]
    asked += [Budget(value=count, unit="layers") for count in sorted({1, case.some, case.largest})]
    for each in asked:
        count = each.layers_asked(case.n_layers)
        if count > case.largest:
            continue
        plan = case.plan(each)
        if len(plan.removed_layers) != count:
            raise Failed(f"{each} of {case.n_layers} layers is {count}, the plan removes {len(plan.removed_layers)}")
        if plan.budget is None or plan.budget.achieved.layers_removed != count:
            raise Failed("the plan's budget does not say what it removes: use self.build_plan")


@ON_MODEL
def empty_budget(case: StrategyCase) -> None:
    """At sparsity 0 the plan is empty."""
    plan = case.plan(Budget(value=0.0))
    if not plan.is_empty:
        raise Failed(f"nothing was asked for, the plan removes {list(plan.removed_layers)}: use context.n_remove")


@ON_MODEL
def largest_budget(case: StrategyCase) -> None:
    """The largest possible budget works, and one layer more is a BudgetError."""
    case.need_layers()
    if case.largest == 0:
        raise Failed("no layer may go at all: lower the strategy's own protection")
    for count in (case.largest + 1, case.n_layers, case.n_layers + 1):
        try:
            plan = case.plan(count)
        except BudgetError as error:
            if len(str(error).splitlines()) != 1:
                raise Failed("the BudgetError has several lines: say it in one") from error
        except (Exception, SystemExit) as error:
            raise Failed(f"{count} of {case.n_layers} layers give {typed_line(error)}: raise BudgetError") from error
        else:
            raise Failed(
                f"{count} of {case.n_layers} layers were asked for and {len(plan.removed_layers)} go: raise BudgetError"
            )


@ON_MODEL
def protected(case: StrategyCase) -> None:
    """Layers that the architecture cannot lose stay."""
    case.need_layers()
    last = case.n_layers - 1
    for keep in ((0,), (last,), (1, last - 1), (0, last)):
        for count in {1, case.some, case.largest}:
            try:
                plan = case.plan(count, protected=keep)
            except BudgetError:  # fewer may go now
                continue
            if taken := sorted(set(plan.removed_layers) & set(keep)):
                raise Failed(f"the plan removes layer {taken[0]}, which is protected: honour context.model.protected")


@ON_MODEL
def scores(case: StrategyCase) -> None:
    """Every layer has a finite score, the kept ones too."""
    plan = case.plan(case.usual)
    if plan.scores is None:
        raise Skipped("the strategy selects without scores")
    for name, values in {"scores": plan.scores.values, **plan.scores.columns}.items():
        if len(values) != case.n_layers:
            raise Failed(f"{name}: {len(values)} values for {case.n_layers} layers")
        if not np.isfinite(values).all():
            raise Failed(f"{name}: layer {int(np.flatnonzero(~np.isfinite(values))[0])} has {values}: no finite number")
    if not plan.scores.meaning.strip():
        raise Failed("the scores say not what they mean: set `meaning` or write a docstring")


@ON_MODEL
def json_round_trip(case: StrategyCase) -> None:
    """A plan written as JSON, with its tensors beside it, and read back is the same plan."""
    plan = case.plan(case.usual)
    try:
        with tempfile.TemporaryDirectory() as folder:
            plan.save(Path(folder, "plan.json"))
            again = Plan.load(Path(folder, "plan.json"))
    except (PruneBenchError, ValueError) as error:
        raise Failed(f"the plan cannot be kept as JSON: {typed_line(error)}") from error
    if again != plan:
        raise Failed("read back from JSON the plan is another one: put only text, numbers and lists into notes")


@ON_MODEL
def determinism(case: StrategyCase) -> None:
    """The same trace and seed give the same plan, whatever the global random state is."""
    found = []
    for state in (1, 2, 3):
        with _global_seed(state):
            found.append(case.plan(case.usual, seed=5))
    for other in found[1:]:
        if other.digest != found[0].digest or other.scores != found[0].scores:
            raise Failed(
                f"one seed gives {list(found[0].removed_layers)} and then {list(other.removed_layers)}, or other "
                "scores: draw from np.random.default_rng(context.seed)"
            )


@ON_MODEL
def seeds(case: StrategyCase) -> None:
    """A stochastic strategy differs between seeds; one that is not declared so does not."""
    digests = {case.plan(case.usual, seed=seed).digest for seed in range(SEEDS)}
    if case.strategy.stochastic and len(digests) == 1 and 0 < case.some < case.n_layers:
        raise Failed(f"{SEEDS} seeds give one plan: use context.seed, or leave out `stochastic = True`")
    if not case.strategy.stochastic and len(digests) > 1:
        raise Failed(f"{SEEDS} seeds give {len(digests)} plans: declare `stochastic = True`")


@ON_MODEL
def runs(case: StrategyCase) -> None:
    """The pruned model runs, and its logits are finite."""
    import torch

    loaded = case.bench.loaded
    inputs = case.bench.inputs()
    if n_of_m(case.strategy.plan_kind):
        budgets = [case.usual]
    else:
        counts = sorted({1, case.some, case.largest} & set(range(1, case.largest + 1)))
        budgets = [Budget(value=count, unit="layers") for count in counts]
    for each in budgets:
        with pruned(loaded, case.plan(each)), torch.inference_mode():
            if not torch.isfinite(loaded.adapter.forward(loaded, inputs, logits_to_keep=1)).all():
                raise Failed(f"at {each} the logits are not finite")


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Set the global random states, and put them back."""
    import torch

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
