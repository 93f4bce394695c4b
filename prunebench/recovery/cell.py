"""The recovery of one cell of a run: of the plan its strategy made, or of one that removes more for what comes back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from prunebench.budget import Budget
from prunebench.errors import PruneBenchError, RecoveryError
from prunebench.plan import Plan
from prunebench.recovery.outcome import outcome
from prunebench.recovery.spec import LayerReplacement

if TYPE_CHECKING:
    from prunebench.grid import Job
    from prunebench.runner import Session

__all__ = ["recover_cell"]


def recover_cell(session: Session, job: Job, plan: Plan) -> Plan:
    """What the cell's recovery makes of `plan`; `plan` itself where the cell asks for none.

    Raises:
        RecoveryError: it does not fit, or training diverged.
    """
    from prunebench.recovery.stage import recover

    recovery = job.cell.recovery
    if recovery is None:
        return plan
    if isinstance(recovery, LayerReplacement) and recovery.keep_count and _back(plan, recovery):
        plan = _with_more_removed(session, job, plan, recovery)
    with session.reporter.bar(f"  recovery {recovery.label}", len(session.samples())) as advance:
        found = recover(
            plan,
            session.loaded,
            session.samples(),
            recovery,
            advance,
            encode=lambda batch: session.encoder.encode(session.loaded, batch),
            folder=session.store.root / "recovery",
            warn=session.reporter.warn,
        )
    known = plan.provenance.warnings if plan.provenance is not None else ()
    for line in found.provenance.warnings[len(known) :] if found.provenance is not None else ():
        session.reporter.warn(line)
    if line := outcome(found):
        session.reporter.note(f"  recovery {line}")
    return found


def _back(plan: Plan, recovery: LayerReplacement) -> int:
    """How many layers come back where modules stand in for what `plan` removes."""
    from prunebench.recovery.replace import replaceable

    return sum(not block.slot_stays for block in replaceable(plan, recovery)[0])


def _with_more_removed(session: Session, job: Job, plan: Plan, recovery: LayerReplacement) -> Plan:
    """A plan of the same strategy that meets the budget once a module has come back for each of its longer runs.

    Raises:
        RecoveryError: no budget gives such a plan.
    """
    asked = len(plan.removed_layers)
    for count in range(asked + 1, session.loaded.info.n_layers):
        cell = job.cell.model_copy(update={"budget": Budget(value=count, unit="layers")})
        try:
            more, _ = session.plan(dataclasses.replace(job, cell=cell))
            back = _back(more, recovery)
        except PruneBenchError:
            continue  # this many cannot go, or none of them stand together
        if len(more.removed_layers) - back == asked:
            return more.model_copy(update={"budget": _asked_of(more, plan), "provenance": _noted(more, asked)})
    raise RecoveryError(
        f"recover.keep_count: no plan of {job.strategy.name} removes {asked} layers net of what comes back; "
        "leave keep_count out, or use select=contiguous"
    )


def _asked_of(more: Plan, plan: Plan) -> object:
    if more.budget is None or plan.budget is None:
        return more.budget
    return more.budget.model_copy(update={"asked": plan.budget.asked, "layers_asked": plan.budget.layers_asked})


def _noted(more: Plan, asked: int) -> object:
    if more.provenance is None:
        return None
    notes = {**more.provenance.notes, "keep_count": {"asked": asked, "removed_first": len(more.removed_layers)}}
    return more.provenance.model_copy(update={"notes": notes})
