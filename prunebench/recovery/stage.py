"""The stage between selection and judgement: a plan goes in, a plan with more operations comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from prunebench import jsonio, surgery
from prunebench.budget import BudgetReport, achieved
from prunebench.calibration.samples import Sample, fingerprint
from prunebench.errors import RecoveryError
from prunebench.plan import Plan, PlanCost, Provenance, first_problem
from prunebench.plan_parts import RecoveryCost
from prunebench.recovery.checkpoint import Checkpoint
from prunebench.recovery.material import Material, Recovered
from prunebench.recovery.spec import LayerReplacement, Lora, Recovery, ReplaceMe
from prunebench.recovery.training import Progress

if TYPE_CHECKING:
    from prunebench.adapter import DecoderInputs, LoadedModel

__all__ = ["recover", "training_key"]


def recover(
    plan: Plan,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    recovery: Recovery,
    progress: Progress | None = None,
    *,
    encode: Callable[[Sequence[Sample]], DecoderInputs] | None = None,
    folder: str | Path | None = None,
    warn: Callable[[str], None] | None = None,
) -> Plan:
    """Recover what `plan` takes from the model, as far as `recovery` can.

    The loaded model is bit for bit what it was afterwards, also if this is interrupted. Training saves where it stands
    in `folder`; the same call goes on from there, and ends as if it had never stopped.

    Args:
        plan: what is removed; it may be empty, then the dense model is trained.
        loaded: the dense model.
        samples: of the calibration.
        recovery: what to do (`parse_recovery`).
        progress: called with what is done, what there is in all, and words such as the loss.
        encode: gives a batch's decoder inputs; ``loaded.encode`` by default, a cache where there is one.
        folder: where checkpoints lie; None keeps none.
        warn: told of a checkpoint that cannot be used.

    Returns:
        The plan with further operations and tensors; budget, cost, warnings and notes say what came of it.

    Raises:
        RecoveryError: it does not fit this plan or model, or training diverged.
        PlanError: the plan is for another model.
    """
    surgery.check_fits(loaded, plan)
    if not samples:
        raise RecoveryError("recovery needs calibration samples: give a dataset with --calibration")
    material = Material(loaded, samples, encode or loaded.encode)
    if isinstance(recovery, ReplaceMe):
        from prunebench.recovery.fold import fold_runs

        return _recovered(plan, loaded, recovery, fold_runs(plan, material, recovery, progress=progress))
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(Path(folder), training_key(plan, loaded, samples, recovery), warn)
    if isinstance(recovery, LayerReplacement):
        from prunebench.recovery.replace import replace_runs as method
    elif isinstance(recovery, Lora):
        from prunebench.recovery.lora import adapt_layers as method  # type: ignore[assignment]
    else:
        from prunebench.recovery.tune import tune_layers as method
    found = method(plan, material, recovery, checkpoint=checkpoint, progress=progress)  # type: ignore[arg-type]
    return _recovered(plan, loaded, recovery, found)


def training_key(plan: Plan, loaded: LoadedModel, samples: Sequence[Sample], recovery: Recovery) -> str:
    """Hash of all that the result of a training depends on."""
    notes = plan.provenance.notes if plan.provenance is not None else {}
    info = loaded.info
    parts = [plan.digest, recovery.model_dump(mode="json"), fingerprint(samples), info.revision, info.dtype]
    return jsonio.digest([*parts, notes.get("tune_layers"), notes.get("replace_block")])[:32]


def _recovered(plan: Plan, loaded: LoadedModel, recovery: Recovery, found: Recovered) -> Plan:
    """The plan that comes out, with what it now removes, what that took, and how well it went."""
    before = plan.provenance or Provenance(strategy="")
    notes = {"recovery": {**recovery.model_dump(mode="json"), **found.notes}}
    report = plan.budget
    if report is not None and found.ops != plan.ops:
        report = BudgetReport(
            asked=report.asked,
            layers_asked=report.layers_asked,
            rounding=report.rounding,
            achieved=achieved(loaded.info, ops=found.ops, tensors=found.tensors),
        )
    cost = RecoveryCost(
        forward_passes=found.forward_passes,
        backward_passes=found.backward_passes,
        tokens=found.tokens,
        seconds=found.seconds,
    )
    lines = [f"recovery {recovery.label}: {line}" for line in found.warnings]
    try:
        return Plan(
            kind=plan.kind,
            target=plan.target,
            ops=found.ops,
            tensors=found.tensors,  # type: ignore[arg-type]
            scores=plan.scores,
            budget=report,
            provenance=before.model_copy(
                update={"warnings": (*before.warnings, *lines), "notes": {**before.notes, **notes}}
            ),
            cost=PlanCost(**{**plan.cost.model_dump(), "recovery": cost}),
        )
    except ValidationError as error:
        raise RecoveryError(f"--recover {recovery.label} does not fit this plan: {first_problem(error)}") from error
