"""Plans of a run's layerwise methods: made together when the first one is asked for, kept until their cells come up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from prunebench import jsonio
from prunebench.layerwise.strategy import LayerwiseStrategy
from prunebench.plan import Plan
from prunebench.plan_context import PlanContext

if TYPE_CHECKING:
    from prunebench.grid import Job
    from prunebench.model_info import ModelInfo

__all__ = ["Waiting"]

SHARE = 0.5
"""Of the free memory, what waiting plans may take: a method that changes weights keeps new ones of all layers."""


class Waiting:
    """Layerwise plans that are wanted, and those that are made and not called for yet.

    Cells that differ in nothing that a plan depends on (in their recovery, say) get one plan; it is freed when the last
    of them has it.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._left: Counter[str] = Counter()
        self._made: dict[str, tuple[Plan | BaseException, PlanContext | None]] = {}

    def expect(self, jobs: Iterable[Job]) -> None:
        """Jobs that `take` will be called for; those of other methods are left out."""
        for job in jobs:
            if isinstance(job.strategy, LayerwiseStrategy):
                self._jobs.setdefault(_key(job), job)
                self._left[_key(job)] += 1

    def has(self, job: Job) -> bool:
        """Whether the plan of a job is made."""
        return _key(job) in self._made

    def take(
        self,
        job: Job,
        context_of: Callable[[Job], PlanContext],
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Plan, PlanContext]:
        """The plan of a job, and a context of its own; with it those that are expected are made, as many as may wait.

        Raises:
            Exception: whatever kept this plan from being made; the others are none the worse for it.
        """
        from prunebench.layerwise.together import plan_together

        key = _key(job)
        if key not in self._made:
            self._jobs.setdefault(key, job)
            others = [name for name in self._jobs if name not in self._made and name != key]
            first = context_of(job).model
            todo = {name: self._jobs[name] for name in [key, *others[: _room(first) - 1]]}
            failed, contexts = {}, {}
            for name, each in todo.items():
                try:
                    contexts[name] = context_of(each)
                except (Exception, SystemExit) as error:
                    failed[name] = (error, None)
            pairs = [(todo[name].strategy, context) for name, context in contexts.items()]
            plans = plan_together(pairs, progress) if pairs else []
            self._made |= failed
            self._made |= dict(zip(contexts, zip(plans, contexts.values(), strict=True), strict=True))
        plan, context = self._made[key]
        self._left[key] -= 1
        if self._left[key] <= 0:
            for kept in (self._made, self._jobs, self._left):
                del kept[key]
        if isinstance(plan, BaseException) or context is None:
            raise plan  # type: ignore[misc]
        own = {"warnings": list(context.warnings), "notes": dict(context.notes), "artefacts": dict(context.artefacts)}
        return plan, replace(context, **own)


def _room(model: ModelInfo) -> int:
    """How many plans may wait at once, each as large as all decoder layers; at least the one that is asked for."""
    import psutil

    size = max(1, sum(layer.bytes for layer in model.layers))
    return max(1, int(SHARE * psutil.virtual_memory().available / size))


def _key(job: Job) -> str:
    """All that the plan depends on within a run."""
    cell, strategy = job.cell, job.strategy
    return jsonio.canonical([strategy.name, strategy.params(), cell.budget.model_dump(mode="json"), cell.seed])
