"""Every strategy of a session planned beside the others, from one calibration pass whose forward passes are counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunebench.agreement import jaccard, matrix, rank_correlation
from prunebench.errors import CalibrationError, PruneBenchError, first_line, typed_line
from prunebench.kinds import removes_layers
from prunebench.model_info import ModelInfo
from prunebench.plan import Plan

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.config import Cell
    from prunebench.grid import Job
    from prunebench.runner import Session

__all__ = [
    "Pass",
    "Planned",
    "SideBySide",
    "Unit",
    "collect",
    "count_samples",
    "label_of",
    "plan_side_by_side",
    "planned",
    "removed_units",
]

Unit = tuple[int, str]
"""Layer and part: a layer that goes whole loses its attention and its MLP."""


@dataclass(frozen=True)
class Pass:
    """The calibration pass that all strategies share.

    Attributes:
        samples: how many there are.
        forwards: samples that went through the model, as counted at its first decoder layer; 0 where the statistics
            were on disk already.
        seconds: wall time.
        reused: whether they were.
    """

    samples: int = 0
    forwards: int = 0
    seconds: float = 0.0
    reused: bool = False

    @property
    def per_sample(self) -> float:
        return self.forwards / self.samples if self.samples else 0.0


@dataclass(frozen=True)
class Planned:
    """One strategy: its plan, or why there is none.

    Attributes:
        label: name, and the parameters that are not at their default.
        reason: empty, or one line.
        passes: full forward passes over the calibration samples beside the shared one, in layers run.
        seconds: scoring and selecting.
    """

    label: str
    strategy: str
    seed: int
    plan: Plan | None
    reason: str = ""
    passes: float = 0.0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    artefacts: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def scores(self) -> tuple[float, ...] | None:
        """(L,), higher goes first; None for a strategy that does not score layers."""
        return self.plan.scores.values if self.plan is not None and self.plan.scores is not None else None

    @property
    def removes_layers(self) -> bool:
        """Whether there is a plan, and it is told by the layers or parts that go."""
        return self.plan is not None and removes_layers(self.plan.kind)


@dataclass(frozen=True)
class SideBySide:
    """All strategies at one budget."""

    model: ModelInfo
    budget: str
    calibration: Pass
    rows: tuple[Planned, ...]

    @property
    def planned(self) -> list[Planned]:
        """The rows that have a plan."""
        return [row for row in self.rows if row.plan is not None]

    @property
    def of_layers(self) -> list[Planned]:
        """The rows whose plan removes layers or parts of them."""
        return [row for row in self.rows if row.removes_layers]

    @property
    def of_other_kinds(self) -> list[Planned]:
        """The rows whose plan makes weights zero, or matrices smaller."""
        return [row for row in self.planned if not row.removes_layers]

    def jaccard(self, rows: Sequence[Planned] | None = None) -> list[list[float | None]]:
        """Overlap of the removed units of every two of `rows` (default: all planned ones); None where none can go."""
        units = [
            removed_units(row.plan) if row.plan and row.removes_layers else None for row in _or(rows, self.planned)
        ]
        return matrix(units, lambda a, b: None if a is None or b is None else jaccard(a, b))

    def correlation(self, method: str, rows: Sequence[Planned] | None = None) -> list[list[float | None]]:
        """Rank correlation of the scores of every two of `rows` (default: all planned ones), over all layers."""
        scores = [row.scores for row in _or(rows, self.planned)]
        return matrix(scores, lambda a, b: rank_correlation(a, b, method))  # type: ignore[arg-type]

    def as_data(self) -> dict[str, Any]:
        """JSON-able; the matrices are in the order of `planned`."""
        return {
            "model": self.model.name,
            "n_layers": self.model.n_layers,
            "budget": self.budget,
            "calibration": {
                "samples": self.calibration.samples,
                "sample_forwards": self.calibration.forwards,
                "forwards_per_sample": self.calibration.per_sample,
                "reused": self.calibration.reused,
                "seconds": round(self.calibration.seconds, 3),
            },
            "strategies": [
                {
                    "label": row.label,
                    "strategy": row.strategy,
                    "seed": row.seed,
                    "reason": row.reason or None,
                    "further_passes": row.passes,
                    "seconds": round(row.seconds, 4),
                    "warnings": list(row.warnings),
                    "kind": row.plan.kind if row.plan is not None else None,
                    "achieved": row.plan.budget.achieved.model_dump(mode="json")
                    if row.plan is not None and row.plan.budget is not None
                    else None,
                    "removed_layers": list(row.plan.removed_layers) if row.plan is not None else None,
                    "scores": list(row.scores) if row.scores is not None else None,
                }
                for row in self.rows
            ],
            "planned": [row.label for row in self.planned],
            "jaccard": self.jaccard(),
            "kendall": self.correlation("kendall"),
            "spearman": self.correlation("spearman"),
        }


def _or(rows: Sequence[Planned] | None, planned: list[Planned]) -> Sequence[Planned]:
    return planned if rows is None else rows


def label_of(cell: Cell) -> str:
    """Name, and the parameters that are not at their default."""
    parts = [f"{key}={cell.strategy_params[key]}" for key in sorted(cell.strategy_params)]
    return f"{cell.strategy} ({', '.join(parts)})" if parts else cell.strategy


def removed_units(plan: Plan) -> frozenset[Unit]:
    """What a plan removes, by layer and part, so that plans that remove parts compare with those that remove layers."""
    whole = {(layer, part) for layer in plan.removed_layers for part in ("attention", "mlp")}
    return frozenset(whole | set(plan.removed_sublayers))


def plan_side_by_side(session: Session) -> list[SideBySide]:
    """Plan every strategy of the session at every budget; one seed of each.

    A strategy that cannot run is a row with its reason.

    Raises:
        PruneBenchError: nothing can be planned at all (no samples, a damaged trace that cannot be moved).
    """
    jobs = [j for j in session.cells() if j.strategy.name in session.strategies and j.cell.recovery is None]
    calibration, reasons = collect(session)
    budgets = list(dict.fromkeys(str(job.cell.budget) for job in jobs))
    wanted: dict[str, dict[str, Job]] = {budget: {} for budget in budgets}
    for job in jobs:
        wanted[str(job.cell.budget)].setdefault(job.strategy.name, job)  # the first seed
    session.expect([job for own in wanted.values() for name, job in own.items() if name not in reasons])
    found = []
    for budget, own in wanted.items():
        rows = [planned(session, job, reasons.get(name)) for name, job in own.items()]
        found.append(SideBySide(session.loaded.info, budget, calibration, tuple(rows)))
    return found


def collect(session: Session) -> tuple[Pass, dict[str, str]]:
    """Make the session's trace; strategies whose statistics this model cannot give go, with the reason, by name."""
    reasons: dict[str, str] = {}
    asked = session.strategies
    forwards, started = 0, time.perf_counter()
    try:
        while any(strategy.requires() for strategy in session.strategies.values()):
            with count_samples(session.loaded) as counted:
                try:
                    trace = session.trace()
                except CalibrationError as error:
                    unfit = _unfit(session, error, ran=bool(counted))
                else:
                    forwards += sum(counted)
                    seconds = time.perf_counter() - started
                    return Pass(trace.meta.n_samples, forwards, seconds, reused=not forwards), reasons
            forwards += sum(counted)
            reasons |= unfit
            session.strategies = {name: value for name, value in session.strategies.items() if name not in unfit}
    finally:
        session.strategies = asked
    return Pass(forwards=forwards, seconds=time.perf_counter() - started), reasons


@contextmanager
def count_samples(loaded: LoadedModel) -> Iterator[list[int]]:
    """A list that grows by the number of samples at every forward pass through the first decoder layer."""
    counted: list[int] = []

    def see(_module: Any, args: tuple, kwargs: dict) -> None:
        counted.append(int((args[0] if args else kwargs["hidden_states"]).shape[0]))

    handle = loaded.layers[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield counted
    finally:
        handle.remove()


def _unfit(session: Session, error: CalibrationError, *, ran: bool) -> dict[str, str]:
    """Which strategies cannot have their statistics, and why; the error itself where no statistic is to blame."""
    from prunebench.calibration.collect import calibrate, trace_bytes

    wanted = sorted(set().union(*(strategy.requires() for strategy in session.strategies.values())))
    bad: dict[str, str] = {}
    for name in wanted:
        try:
            calibrate(session.loaded, session.samples()[:1], [name])
        except PruneBenchError as own:
            bad[name] = first_line(own)
    if not bad and not ran and len(wanted) > 1:  # refused for its size before the model ran: without the largest, then
        sizes = trace_bytes(session.loaded.info, len(session.samples()), wanted)
        largest = max(sizes, key=sizes.__getitem__)
        bad = {name: first_line(error) for name in wanted if name == largest or largest.startswith(f"{name}=")}
    if not bad:
        raise error
    strategies = session.strategies.items()
    return {name: bad[sorted(lost)[0]] for name, value in strategies if (lost := value.requires() & set(bad))}


def planned(session: Session, job: Job, reason: str | None = None) -> Planned:
    """The plan of one job; a row with its reason where there is none."""
    label, name, seed = label_of(job.cell), job.strategy.name, job.cell.seed
    if reason is not None:
        return Planned(label, name, seed, None, reason)
    try:
        plan, context = session.plan(job)
    except Exception as error:  # a method's own bug is a line too: the others are still worth seeing
        if session.reporter.debug and not isinstance(error, PruneBenchError):
            raise
        ours = isinstance(error, PruneBenchError) and str(error).strip()
        return Planned(label, name, seed, None, first_line(error) if ours else typed_line(error))
    return Planned(
        label,
        name,
        seed,
        plan,
        passes=float(context.probe.passes) if context.probe is not None else 0.0,
        seconds=plan.cost.search_seconds,
        warnings=tuple(context.warnings),
        artefacts=dict(context.artefacts),
    )
